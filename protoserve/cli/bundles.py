"""The commands that need only bundles: `predict`, `inspect` and `ensemble`.

Each imports numpy, onnxruntime, Pillow and pydantic inside its function, so that `--help` stays fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protoserve.cli.options import (
    AllowOption,
    BundleArgument,
    ContrastOption,
    DenyOption,
    DepthOption,
    DeviceOption,
    JsonOption,
    ListOption,
    PrecisionOption,
    PriorOption,
    TopKOption,
    WithOption,
    WithoutOption,
    chosen_model,
)
from protoserve.cli.output import console, say
from protoserve.cli.starting import uncollected
from protoserve.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from protoserve.inference.options import OptionKeywords
    from protoserve.schema import Prediction


def predict(
    bundle: BundleArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="One or more image files.")],
    top_k: TopKOption = None,
    alternatives: Annotated[int, typer.Option(help="Other nodes to show per level.")] = 3,
    maps: Annotated[bool, typer.Option("--maps", help="Include each prototype's similarity at every cell.")] = False,
    contrast: ContrastOption = None,
    without: WithoutOption = None,
    precision: PrecisionOption = None,
    allow: AllowOption = None,
    deny: DenyOption = None,
    depth: DepthOption = None,
    prior: PriorOption = None,
    named_list: ListOption = None,
    as_json: JsonOption = False,
    others: WithOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Predict the class of images at every level, with the evidence for it.

    With --json, prints a prediction for one image and a list of predictions for several. --allow, --deny, --depth,
    --prior and --list say what can be in the picture.

    Example: protoserve predict bundles/grocery photo.jpg --top-k 3 --contrast Fruit/Lemon --allow Fruit --json
    """
    with uncollected():
        from protoserve.cli.terminal import prediction_tree
        from protoserve.inference.classifier import BATCH, load
        from protoserve.inference.option_text import levels_of, numbers_of, weights_of

        classifier = load(chosen_model(bundle, others), device=device)
    asked: OptionKeywords = {
        "top_k": top_k,
        "alternatives": alternatives,
        "maps": maps,
        "contrast": contrast,
        "without": numbers_of(without, "--without "),
        "precision": precision,
        "allow": allow or (),
        "deny": deny or (),
        "depth": levels_of(depth or (), "--depth "),
        "prior": weights_of(prior or (), "--prior "),
        "list": named_list,
    }
    predictions: list[Prediction] = []
    for start in range(0, len(images), BATCH):
        fitted = [classifier.fit(image) for image in images[start : start + BATCH]]
        predictions += classifier.predict_fitted(fitted, **asked)
    if as_json:
        documents = [prediction.model_dump(mode="json") for prediction in predictions]
        _print_json(documents if len(images) > 1 else documents[0], indent=None if maps else 2)
        return
    for image, prediction in zip(images, predictions, strict=True):
        _print(prediction_tree(image, prediction))


def inspect(
    bundle: BundleArgument,
    everything: Annotated[
        bool, typer.Option("--all", help="Show all: the whole class tree, all files, metrics and provenance.")
    ] = False,
    others: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a bundle on one screen: its classes, accuracy, truth card, promise, input and files; with --all, all of it.

    Example: protoserve inspect bundles/grocery
    """
    from protoserve.cli.inspection import model_document, model_report
    from protoserve.inference.classifier import open_model

    model = open_model(chosen_model(bundle, others))
    if as_json:
        _print_json(model_document(model))
    else:
        for part in model_report(model, everything=everything):
            _print(part)


def ensemble(
    directory: Annotated[Path, typer.Argument(metavar="ENSEMBLE", help="The folder to write.")],
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="The members, on one taxonomy.")],
    name: Annotated[str | None, typer.Option(help="The ensemble's name; by default its members' names.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing ensemble.")] = False,
) -> None:
    """Combine bundles into an ensemble, a folder with copies of them that every command accepts as a bundle.

    An ensemble sums its members' scores before the softmax (Chen et al. 2019). Each piece of evidence names its member.

    Example: protoserve ensemble bundles/three bundles/a bundles/b bundles/c
    """
    from protoserve.bundle.ensemble import write_ensemble
    from protoserve.bundle.folder import read_bundle

    if name is not None and not name.strip():
        raise InputError("--name is empty; give the model a name, or omit the option")
    written = write_ensemble([read_bundle(bundle) for bundle in bundles], directory, name=name, overwrite=overwrite)
    say(f"{directory}   {written.name} {written.version[:19]}, {len(written.members)} members")


def _print_json(document: Any, indent: int | None = 2) -> None:
    # json.dumps escapes non-ASCII characters, because not every terminal's encoding has all characters of the labels.
    say(json.dumps(document, indent=indent, allow_nan=False))


def _print(part: RenderableType) -> None:
    # Output into a pipe is read by programs, so its lines are not wrapped.
    console(width=10_000).print(part)
