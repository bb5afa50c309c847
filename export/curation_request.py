"""What a person asks of `protoserve curate`, as a link of the bundle's chain."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from protoserve.account import account_name
from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import Bundle, first_problem
from protoserve.errors import InputError
from protoserve.feedback.curation import CurationLine, read_curation

# Builds that must be reproducible say what time it is: https://reproducible-builds.org/specs/source-date-epoch/
EPOCH: Final = "SOURCE_DATE_EPOCH"


def requested_link(
    bundle: Bundle,
    disable: str,
    require: str,
    restore: str,
    feedback: Path | None,
    *,
    reason: str,
    by: str | None,
    refitted: bool,
) -> CurationLink:
    """Make the link that the options ask for; the file `feedback` adds prototypes to switch off, and a reason.

    Lines of feedback that name prototypes that are off already are passed over; `by` is by default the account's name.

    Raises InputError for lists that are not numbers, for feedback on another version, and without a reason.
    """
    disabled = parse_ids("--disable", disable)
    lines = [] if feedback is None else lines_about(bundle, feedback)
    disabled += [line.prototype for line in lines if line.prototype not in disabled]
    reason = reason.strip() or told(lines)
    if not reason:
        raise InputError('give --reason "…": whoever looks at the bundle later will ask why')
    try:
        return CurationLink(
            before=bundle.version,
            disabled=disabled,
            required=parse_ids("--require", require),
            restored=parse_ids("--restore", restore),
            refitted=refitted,
            reason=reason,
            by=(by or account_name()).strip(),
            at=now(),
        )
    except ValidationError as error:
        raise InputError(f"--reason and --by are one line of text each ({first_problem(error)})") from error


def parse_ids(option: str, text: str) -> list[int]:
    """Parse prototype numbers that are separated by commas; raises InputError for anything else.

    >>> parse_ids("--disable", "12, 17")
    [12, 17]
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not (part.isascii() and part.isdecimal()):
            raise InputError(f"{option} {text}: {part!r} is not the number of a prototype; give numbers, as in 12,17")
    return [int(part) for part in parts]


def lines_about(bundle: Bundle, feedback: Path) -> list[CurationLine]:
    """Read the lines of a file that are about this version of the bundle and that are not carried out yet.

    Raises InputError if none is about this version, and as `read_curation` does.
    """
    lines = read_curation(feedback)
    own = [line for line in lines if line.model == bundle.version]
    if lines and not own:
        raise InputError(
            f"{feedback}: is about version {lines[0].model[:19]}, but {bundle.directory} is {bundle.version[:19]}; "
            "curate the version that people commented on"
        )
    return [line for line in own if line.prototype not in bundle.curation.off]


def told(lines: list[CurationLine]) -> str:
    """Gather the reasons of feedback in one line; empty without any.

    >>> told([])
    ''
    """
    reasons = dict.fromkeys(" ".join(line.reason.split()) or "a wrong reason" for line in lines)
    return f"feedback: {'; '.join(reasons)}" if reasons else ""


def now() -> str:
    """Return the time in UTC, ISO 8601; that of `SOURCE_DATE_EPOCH`, in seconds, where the environment sets it."""
    epoch = os.environ.get(EPOCH, "")
    if not epoch:
        moment = datetime.now(UTC)
    elif epoch.isascii() and epoch.isdecimal():
        moment = datetime.fromtimestamp(int(epoch), UTC)
    else:
        raise InputError(f"{EPOCH}={epoch!r} is not a number of seconds; unset it")
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
