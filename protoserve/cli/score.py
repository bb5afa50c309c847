"""The command `score`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from protoserve.cli.options import BundleArgument, DeviceOption, JsonOption
from protoserve.cli.output import say
from protoserve.cli.progress import progress
from protoserve.cores import usable_cores
from protoserve.errors import InputError, MissingExtraError
from protoserve.names import visible


class EngineChoice(StrEnum):
    """The engine that scores the parts: this process, or a Ray cluster."""

    local = "local"
    ray = "ray"


def score(
    bundle: BundleArgument,
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_MANIFEST", help="A folder of pictures, or a table with a column 'image'.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The Parquet file to write.")],
    top_k: Annotated[int, typer.Option(min=0, help="Evidence per level; 0 for none.")] = 1,
    precision: Annotated[
        float | None, typer.Option(help="The share of answers that must be right; by default the bundle's own.")
    ] = None,
    engine: Annotated[
        EngineChoice, typer.Option(help="local, or ray for a cluster (extra 'ray').")
    ] = EngineChoice.local,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With ray: the number of parallel models; by default one per core.")
    ] = None,
    part: Annotated[
        int, typer.Option(min=1, help="Pictures per part. An interrupted run loses at most one part per model.")
    ] = 1000,
    device: DeviceOption = "auto",
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove the parts of an earlier run and start over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score many pictures into one Parquet file. An interrupted run resumes after its last complete part.

    A picture that can't be read becomes a row with an error; the others are scored. Files that are not pictures are
    counted, and so are the answers at each level. 'protoserve verify' makes any row's answer again.

    Example: protoserve score bundles/grocery photos/ -o scores.parquet
    """
    try:
        from protoserve.scoring import local as scoring
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise MissingExtraError("'protoserve score'", "score") from None
    from protoserve.data.folders import told
    from protoserve.inference.classifier import load
    from protoserve.inference.options import PredictOptions

    if output.is_dir():
        raise InputError(f"{output} is a folder; give the Parquet file to write")
    root, images, passed_over = scoring.find_images(source)
    classifier = load(bundle, device=device)
    version = classifier.bundle.version
    options = PredictOptions(top_k=top_k, precision=precision).resolved(classifier.table)
    job = scoring.Job(str(root), images, version, options.top_k, part, precision)
    directory, left = scoring.open_parts(job, output, restart=restart)
    waiting = sum(len(job.of_part(part_index)) for part_index in left)
    with progress("scoring", len(images), done=len(images) - waiting) as advance:
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
                advance=advance,
            )
        else:
            for part_index in left:
                scoring.write_part(scoring.score_part(job, part_index, classifier, advance), directory, part_index)
    rows, errors = scoring.join_parts(job, directory, output, passed_over)
    answered = scoring.answered(output)
    if as_json:
        result = {"output": visible(str(output)), "rows": rows, "errors": errors, "passed_over": dict(passed_over)}
        say(json.dumps({**result, "model": version, "precision": options.precision, "answered": answered}))
    else:
        others = f"; {told(passed_over)}" if passed_over else ""
        say(f"{output}   {rows:,} pictures, {errors:,} of them could not be read{others}")
        if answered is not None and options.precision is not None:
            told_levels = [
                f"{count:,} at {name.replace('_', ' ')}" for name, count in answered.items() if name != "none"
            ]
            silent = f"{answered.get('none', 0):,} without one"
            say(f"answers at a precision of {options.precision:g}: {', '.join([*told_levels, silent])}")
