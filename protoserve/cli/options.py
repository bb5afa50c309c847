"""The arguments and options that several commands share, each declared once.

Importing this module costs no more than typer, so that `--help` stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from protoserve.device import Device

BundleArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle or an ensemble.", show_default=False)
]
WithOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="BUNDLE", help="Another bundle that answers together with BUNDLE; repeatable."),
]
DeviceOption: TypeAlias = Annotated[
    Device,
    typer.Option("--device", help="Where the network runs: auto uses CUDA where it works; cuda fails without it."),
]
DataOption: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data",
        help="A folder that holds train, val and test, with nested class folders; or a CSV or Parquet file with the "
        "columns image, split, and path (Fruit/Apple) or level_1, level_2, …",
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
TopKOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--top-k", help="Prototypes to show per level, up to the bundle's limit.", show_default="5"),
]


def chosen_model(bundle: Path, others: list[Path] | None) -> Path | list[Path]:
    """The model that BUNDLE and the repeated `--with` name, in the form that `protoserve.load` takes."""
    return [bundle, *others] if others else bundle
