"""What feedback asks of the prototypes: the lines that `protoserve curate --from` reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from protoserve.errors import InputError
from protoserve.feedback.lines import read_lines
from protoserve.feedback.record import FeedbackRecord
from protoserve.schema import Contract


class CurationLine(Contract):
    """One prototype that people want switched off, and why."""

    action: Literal["disable"] = "disable"
    model: str = Field(description="the version of the bundle that numbers the prototype")
    prototype: int = Field(ge=0)
    reason: str = Field(description="the comments, joined")
    by: str = Field(description="who said so, joined; where nobody is named, the API keys")
    pictures: int = Field(ge=1, description="different pictures on which it was a wrong reason")
    at: str = Field(description="when it was last said, in ISO 8601")


def curation(records: Iterable[FeedbackRecord], *, pictures: int = 1) -> list[CurationLine]:
    """Gather the prototypes that were a wrong reason on at least so many `pictures`, the most frequent first.

    Prototypes are counted per version of a bundle, because another version may number them otherwise.
    """
    blamed: defaultdict[tuple[str, int], list[FeedbackRecord]] = defaultdict(list)
    for record in records:
        for prototype in record.prototypes:
            blamed[record.model, prototype].append(record)
    lines = [
        CurationLine(
            model=model,
            prototype=prototype,
            reason="; ".join(dict.fromkeys(record.comment for record in said if record.comment)),
            by=", ".join(dict.fromkeys(record.by or record.key or "" for record in said if record.by or record.key)),
            pictures=len({record.image for record in said}),
            at=max(record.at for record in said).isoformat(),
        )
        for (model, prototype), said in blamed.items()
    ]
    kept = (line for line in lines if line.pictures >= pictures)
    return sorted(kept, key=lambda line: (line.model, -line.pictures, line.prototype))


def read_curation(file: Path) -> list[CurationLine]:
    """Read what `protoserve feedback FILE --curation` printed.

    Raises InputError for a file that can't be read or holds a line that is something else.
    """
    lines = read_lines(file)
    if lines.torn:
        raise InputError(f"{file}: {lines.torn} of its lines are not JSON or not complete; make the file again")
    result = []
    for number, value in lines.values:
        try:
            result.append(CurationLine.model_validate(value))
        except ValidationError as error:
            is_feedback = isinstance(value, dict) and "verdict" in value
            hint = "; it is feedback, so run 'protoserve feedback FILE --curation' first" if is_feedback else ""
            first = error.errors()[0]
            raise InputError(
                f"{file}, line {number}: not a line of a curation ({'.'.join(map(str, first['loc']))}: {first['msg']})"
                f"{hint}"
            ) from error
    return result
