"""The command `verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from protoserve.cli.options import BundleArgument, DeviceOption, JsonOption
from protoserve.cli.output import say, say_line


def verify(
    answer: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWER",
            help="JSON of predict --json or of the service, a batch included; or the Parquet file of score.",
        ),
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture that was sent.")],
    bundle: BundleArgument,
    target: Annotated[str, typer.Option(help="The bundle's file to run, such as torchscript (extra 'export').")] = (
        "onnx"
    ),
    tolerance: Annotated[float, typer.Option(min=0, help="How far numbers may be apart.")] = 1e-4,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make a past answer again, with its own options, and say exactly what differs. Exits with 1 if anything does.

    Example: protoserve verify answer.json photo.jpg bundles/grocery
    """
    from protoserve.replay.verifying import verify as verified

    result = verified(answer, image, bundle, target=target, device=device, tolerance=tolerance)
    if as_json:
        document = {"same": result.same, "differences": result.differences, "notes": result.notes, "target": target}
        say(json.dumps(document, indent=2))
    else:
        for note in result.notes:
            say_line(f"note: {note}", error=True)
        for line in result.differences:
            say_line(line)
        if result.same:
            say(f"same answer by {target}: {' › '.join(result.again.path)}")
    if not result.same:
        raise typer.Exit(1)
