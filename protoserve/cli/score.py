"""The command `score`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from protoserve.cli.options import DeviceOption, JsonOption
from protoserve.cores import usable_cores
from protoserve.errors import InputError, MissingExtraError

EXAMPLE = "Example: protoserve score bundles/grocery photos/ -o scores.parquet"


class EngineChoice(StrEnum):
    """What runs the parts."""

    local = "local"
    ray = "ray"


def score(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle or an ensemble.")],
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_MANIFEST", help="A folder of pictures, or a table with a column 'image'.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The Parquet file to write.")],
    top_k: Annotated[int, typer.Option(min=0, help="Evidence per level; 0 leaves it out.")] = 1,
    engine: Annotated[
        EngineChoice, typer.Option(help="local, or ray for a cluster (extra 'ray').")
    ] = EngineChoice.local,
    actors: Annotated[int | None, typer.Option(min=1, help="With ray: models beside each other; one per core.")] = None,
    part: Annotated[int, typer.Option(min=1, help="Pictures per part; what is lost when a run is killed.")] = 1000,
    device: DeviceOption = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Throw away the parts of an earlier run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score many pictures into one Parquet file; a run that was killed goes on where it was.

    Pictures that can't be read are rows with an error, and the others go on.
    """
    try:
        from protoserve.scoring import local as scoring
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise MissingExtraError("'protoserve score'", "score") from None
    from protoserve.inference.classifier import load
    from protoserve.inference.evidence import checked_top_k

    if output.is_dir():
        raise InputError(f"{output} is a folder; give the Parquet file to write")
    root, images = scoring.find_images(source)
    classifier = load(bundle, device=device)
    version = classifier.bundle.version
    job = scoring.Job(str(root), images, version, checked_top_k(classifier.table, top_k), part)
    directory, left = scoring.open_parts(job, output, restart=restart)
    with _progress(len(images), sum(len(job.of_part(number)) for number in left)) as advance:
        if engine is EngineChoice.ray and left:
            try:
                from protoserve.scoring.ray import score_parts
            except ModuleNotFoundError as error:
                if error.name not in ("ray", "pandas"):
                    raise
                raise MissingExtraError("'protoserve score --engine ray'", "ray") from None
            device_in_use = classifier.engine.device
            del classifier
            score_parts(
                job,
                left,
                directory,
                bundle,
                device=device_in_use,
                actors=actors or usable_cores(),
                threads=1,
                done=advance,
            )
        else:
            for number in left:
                scoring.write_part(scoring.score_part(job, number, classifier, advance), directory, number)
    rows, errors = scoring.join_parts(job, directory, output)
    if as_json:
        typer.echo(json.dumps({"output": str(output), "rows": rows, "errors": errors, "model": version}))
    else:
        typer.echo(f"{output}   {rows:,} pictures, {errors:,} of them could not be read")


@contextmanager
def _progress(total: int, left: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, from where an earlier run got to."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=total - left)
        yield lambda count: bar.advance(task, count)
