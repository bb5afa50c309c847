"""The command `audit`."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from protoserve.cli.options import DataOption, DeviceOption, JsonOption
from protoserve.cli.output import console, say
from protoserve.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from protoserve.audit.attack import SupportsGradient
    from protoserve.bundle.folder import Bundle
    from protoserve.device import Device

# The entry point of the package that gives gradients of a bundle's similarities.
GRADIENTS: Final = "protoserve.gradients"


def audit(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.", show_default=False)],
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split whose pictures are audited.")] = "test",
    images: Annotated[
        int, typer.Option(min=2, help="How many pictures, chosen at random. More narrow the intervals and take longer.")
    ] = 100,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed: of the pictures, the random boxes, the noise and the intervals.")
    ] = 0,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder that mirrors the data set's with PNG masks: 0 background, 1, 2, … parts of the object. A "
            "parts.json there or beside it may name the parts and the decisive ones of each node.",
            show_default="DATA/masks, if it exists",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Leave out perturbation, necessity and sufficiency: hundreds of runs per picture."
        ),
    ] = False,
    attack: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Also attack the pixels outside the boxes, with the gradients of the run that BUNDLE was exported "
            "from; takes seconds per picture. Needs the extra export.",
            show_default=False,
        ),
    ] = None,
    require_object: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Exit with 1 if at any level the first evidence lies on the object in a smaller share of "
            "pictures, such as 0.8. Needs masks.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Keep the result, the truth card, in the bundle; this changes its version."),
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure whether a bundle's evidence is true, on labelled pictures. Every figure is beside its baseline.

    [bold]additivity[/bold]: prior and contributions add up to the score.

    [bold]locality[/bold]: the pixels outside a box do not change its similarity; with --attack, not even on purpose.

    [bold]perturbation[/bold]: changes inside a box lower its similarity, changes outside do not.

    [bold]necessity[/bold]: the node loses probability when its boxes are filled; [bold]sufficiency[/bold]: it gains
    when only they are kept; beside random boxes of equal area and the boxes of the least contributing prototypes.

    [bold]parts[/bold], with masks: evidence lies on the object and on the part that decides, and answers do not follow
    the background; with pictures in DATA/interventions, contributions tell what an answer loses without a part.

    [bold]sparsity[/bold]: few prototypes suffice, and they tell their class from its siblings.

    The brackets are 95 % intervals over the pictures. docs/audit.md defines every figure.

    Example: protoserve audit bundles/grocery --data grocery-store --images 200 --write
    """
    from protoserve.audit.auditing import audit as audited
    from protoserve.audit.masks import find_masks
    from protoserve.bundle.ensemble import ENSEMBLE
    from protoserve.bundle.folder import read_bundle, rewrite_manifest
    from protoserve.cli.audit_report import audit_report, on_object
    from protoserve.cli.progress import progress
    from protoserve.inference.engine import Engine

    if (bundle / ENSEMBLE).is_file():
        raise InputError(f"{bundle} is an ensemble; audit its members, the folders below {bundle / 'members'}")
    opened = read_bundle(bundle)
    found = find_masks(data, masks)
    if require_object is not None and found is None:
        raise InputError(f"--require-object needs masks, and {data} has no folder 'masks'; give --masks DIR")
    network = None if attack is None else _gradients(opened, attack, device)
    card = audited(
        opened,
        Engine(opened, device=device),
        data,
        split,
        images=images,
        seed=seed,
        masks=found,
        quick=quick,
        network=network,
        tracked=progress,
    )
    if write:
        opened = rewrite_manifest(opened, truth=card)
    if as_json:
        say(json.dumps(card.model_dump(mode="json"), indent=2, allow_nan=False))
    else:
        # Output into a pipe is read by programs, so its lines are not wrapped.
        screen = console(width=200)
        for part in audit_report(card, opened):
            screen.print(part)
        if write:
            say(f"{bundle}: keeps this truth card; its version is now {opened.version[:19]}")
    least = min((hits.first.measured.mean for hits in card.parts if hits.part == "object"), default=1.0)
    if require_object is not None and least < require_object:
        say(f"error: {on_object(card)}; --require-object asks for {require_object:.0%} at every level", error=True)
        raise typer.Exit(1)


def _gradients(bundle: Bundle, run: Path, device: Device) -> SupportsGradient:
    for entry_point in entry_points(group=GRADIENTS):
        try:
            made: SupportsGradient = entry_point.load()(bundle, run, device)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"--attack (which imports {error.name})", "export") from error
        return made
    raise MissingExtraError("--attack", "export")
