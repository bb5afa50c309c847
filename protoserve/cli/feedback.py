"""The command `feedback`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protoserve.cli.options import JsonOption
from protoserve.cli.output import console, say, say_line
from protoserve.errors import InputError

if TYPE_CHECKING:
    from protoserve.feedback.record import FeedbackRecord
    from protoserve.feedback.summary import FeedbackSummary, VersionSummary

# Lines of each table; --json has all.
_SHOWN = 10


def feedback(
    place: Annotated[
        str, typer.Argument(metavar="FILE_OR_URL", help="What PROTOSERVE_FEEDBACK names: a file, or a database's URL.")
    ],
    curation: Annotated[
        bool,
        typer.Option("--curation", help="Print the prototypes that were wrong reasons, for 'curate --from'."),
    ] = False,
    at_least: Annotated[
        int, typer.Option(min=1, help="With --curation: only prototypes that were wrong on so many pictures.")
    ] = 1,
    to_label: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copy the pictures of wrong answers into class folders of the right nodes below DIR. Needs "
            "--pictures.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --to-label: a folder that holds the pictures, under any names; they are found by their SHA-256. "
            "The service keeps those that clients send in PROTOSERVE_FEEDBACK_PICTURES.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sum up the feedback on answers, or turn it into a curation or a folder of pictures to label.

    Example: protoserve feedback feedback.jsonl --to-label to-label --pictures kept-pictures
    """
    from protoserve.feedback.curation import curation as gathered
    from protoserve.feedback.store import is_url, open_store, shown_place
    from protoserve.feedback.summary import summary

    if curation and to_label is not None:
        raise InputError("--curation and --to-label are two results; ask for one of them")
    if (to_label is None) != (pictures is None):
        raise InputError("--to-label DIR and --pictures DIR belong together; give both")
    if not is_url(place) and not Path(place).is_file():
        raise InputError(f"{place}: no such file; give what PROTOSERVE_FEEDBACK names, a file or a database's URL")
    kept = open_store(place).read()
    if kept.torn:
        say_line(f"note: {shown_place(place)}: passed over {kept.torn} torn lines of stopped writers", error=True)
    if curation:
        for line in gathered(kept.records, pictures=at_least):
            say(line.model_dump_json())
    elif to_label is not None and pictures is not None:
        _label(kept.records, to_label, pictures, as_json)
    elif as_json:
        say(summary(kept).model_dump_json(indent=2))
    else:
        _print(summary(kept))


def _label(records: Sequence[FeedbackRecord], to_label: Path, pictures: Path, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from protoserve.feedback.labelling import UNDECIDED, write_to_label

    labelled = write_to_label(records, pictures, to_label)
    if as_json:
        say(json.dumps({"output": str(to_label), **asdict(labelled)}))
        return
    say(
        f"{to_label}   {labelled.decided} pictures below the node that people named, {labelled.undecided} in "
        f"{UNDECIDED}; {labelled.present} were there already, {labelled.missing} are not below {pictures}"
    )


def _print(found: FeedbackSummary) -> None:
    repeated = f", {found.repeated} sent again" if found.repeated else ""
    say(f"{found.records} pieces of feedback{repeated}")
    for version in found.versions:
        _print_version(version)


def _print_version(version: VersionSummary) -> None:
    from rich.table import Table

    screen = console(width=200)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in version.verdicts.items())
    say(f"\n{version.model[:19]}   {counts}; {version.pictures} pictures, {version.first[:10]} to {version.last[:10]}")
    if version.disputed:
        say(f"people disagree about {len(version.disputed)} pictures (--json names them)")
    if version.confusions:
        table = Table("predicted", "right", "pictures", box=None, pad_edge=False)
        for confusion in version.confusions[:_SHOWN]:
            table.add_row(confusion.predicted, confusion.right or "not known", str(confusion.pictures))
        screen.print(table)
    if version.blamed:
        table = Table("prototype", "a wrong reason on", box=None, pad_edge=False)
        for blame in version.blamed[:_SHOWN]:
            table.add_row(str(blame.prototype), f"{blame.pictures} pictures")
        screen.print(table)
