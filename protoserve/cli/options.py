"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protoserve.device import Device

DeviceOption = Annotated[
    Device,
    typer.Option(help="Where the network runs: auto uses CUDA where it works, cuda fails where it does not."),
]
DataOption = Annotated[
    Path,
    typer.Option(
        help="A folder that holds train, val and test, with nested class folders; or a CSV or Parquet file with the "
        "columns image, split, and path (Fruit/Apple) or level_1, level_2, …"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
