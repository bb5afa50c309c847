"""The commands that need only bundles: `predict`, `explain`, `inspect` and `ensemble`.

Each imports numpy, onnxruntime, Pillow and pydantic inside its function, so that `--help` stays fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

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
from protoserve.cli.output import console, say, say_line
from protoserve.errors import InputError
from protoserve.names import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from protoserve.inference.options import OptionKeywords
    from protoserve.schema import Prediction

FIGURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")


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


def explain(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help=f"The figure to write ({', '.join(FIGURE_SUFFIXES)}).")
    ],
    top_k: Annotated[int, typer.Option(help="Prototypes to draw per level.")] = 3,
    contrast: ContrastOption = None,
    without: WithoutOption = None,
    others: WithOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw an image with its evidence beside the prototypes' source patches, level by level.

    Example: protoserve explain bundles/grocery photo.jpg -o explanation.png
    """
    if output.suffix.lower() not in FIGURE_SUFFIXES:
        raise InputError(
            f"{output}: can't write a figure as {output.suffix or 'a file without suffix'!r}; "
            f"use one of {', '.join(FIGURE_SUFFIXES)}"
        )
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder; make it first or give another --output")
    if output.is_dir() or (output.exists() and output.resolve() == image.resolve()):
        raise InputError(f"{output} is a folder or the image itself; give another --output")
    from protoserve.cli.figures import explain_figure
    from protoserve.cli.lettering import FONT, undrawable
    from protoserve.cli.terminal import contrast_lines
    from protoserve.files import new_file
    from protoserve.images.decoding import decode
    from protoserve.images.fitting import fit
    from protoserve.inference.classifier import load
    from protoserve.inference.option_text import numbers_of

    classifier = load(chosen_model(bundle, others), device=device)
    off = numbers_of(without, "--without ")
    decoded = decode(image)
    fitted = fit(decoded, classifier.bundle.input)
    shown = min(top_k, classifier.table.top_k) if top_k > 0 else top_k
    prediction = classifier.predict_fitted([fitted], top_k=shown, maps=True, contrast=contrast, without=off)[0]
    figure = explain_figure(classifier.bundle, decoded, prediction)
    if (text := undrawable(level.label for level in prediction.levels)) is not None:
        say_line(
            f"note: no font of this machine has all characters of {visible(text)!r}, so the figure shows '?'; install "
            f"one, such as Noto Sans, or name a font file in {FONT}",
            error=True,
        )
    try:
        with new_file(output) as draft:
            figure.save(draft)
    except OSError as error:
        raise InputError(f"{output}: can't write it ({error}); give another --output") from error
    say(f"{' › '.join(prediction.path)} ({prediction.levels[-1].probability:.1%}): wrote {output}")
    for line in contrast_lines(prediction):
        _print(line)


def inspect(bundle: BundleArgument, others: WithOption = None, as_json: JsonOption = False) -> None:
    """Show the content of a bundle: its taxonomy, prototypes, input, files, metrics and provenance.

    Example: protoserve inspect bundles/grocery
    """
    from protoserve.cli.terminal import model_document, model_report
    from protoserve.inference.classifier import open_model

    model = open_model(chosen_model(bundle, others))
    if as_json:
        _print_json(model_document(model))
    else:
        for part in model_report(model):
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
