"""The arguments and options that several commands share, each declared once.

The module imports nothing heavy, so that `--help` stays fast.
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
    typer.Option("--with", metavar="BUNDLE", help="Another bundle, to form an ensemble with BUNDLE; repeatable."),
]
DeviceOption: TypeAlias = Annotated[
    Device,
    typer.Option("--device", help="Where the network runs: auto uses CUDA if it works; cuda fails without it."),
]
DataOption: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data",
        help="A folder that contains train, val and test, with nested class folders; or a CSV or Parquet file with the "
        "columns image, split, and path (Fruit/Apple) or level_1, level_2, …",
    ),
]
SkipBrokenOption: TypeAlias = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out pictures that can't be read, and count them.")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
TopKOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--top-k", help="Prototypes to show per level, up to the bundle's limit.", show_default="5"),
]
AllowOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NODE", help="The picture's class lies in this branch; repeatable."),
]
DenyOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--deny", metavar="NODE", help="The picture's class does not lie in this branch; repeatable."),
]
DepthOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--depth",
        metavar="NODE:LEVEL",
        help="Paths through the node end at this level at the latest, as in Fruit/Apple:2; repeatable. A lone level "
        "holds for the whole tree.",
    ),
]
PriorOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--prior",
        metavar="NODE:WEIGHT",
        help="How much more frequent the node's leaves are than in training, relative to others; repeatable.",
    ),
]
ListOption: TypeAlias = Annotated[
    str | None, typer.Option("--list", metavar="NAME", help="A list of the bundle, which holds, too; see 'lists'.")
]
PrecisionOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--precision", help="The share of answers that must be right.", show_default="the bundle's own"),
]

ContrastOption: TypeAlias = Annotated[
    str | None, typer.Option("--contrast", metavar="NODE", help="Ask why not this node, such as Fruit/Lemon.")
]
WithoutOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--without", metavar="PROTOTYPES", help="Answer as if these prototypes were switched off, such as 12,17."
    ),
]


def chosen_model(bundle: Path, others: list[Path] | None) -> Path | list[Path]:
    """Combine BUNDLE and the repeated `--with` into the argument of `protoserve.load`."""
    return [bundle, *others] if others else bundle
