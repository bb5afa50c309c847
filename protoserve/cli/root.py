"""The root command `protoserve` and the commands that need only bundles: predict, explain, inspect, ensemble.

The other packages add theirs through the entry-point group `protoserve.commands`. Each entry point is one command: a
function that typer reads. Its name states the extra that it needs and the command, `train.evaluate`, or the extra, a
group and the command, `train.data.render`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from protoserve import __version__
from protoserve.cli import score as score_command
from protoserve.cli.options import DeviceOption, JsonOption
from protoserve.device import Device
from protoserve.errors import InputError, MissingExtraError, ProtoServeError

# Everything heavier (numpy, onnxruntime, pillow, pydantic) is imported inside the commands: help must be
# quick.
if TYPE_CHECKING:
    from rich.console import RenderableType

    from protoserve.inference.classifier import Classifier
    from protoserve.schema import Prediction

ENTRY_POINTS: Final = "protoserve.commands"
# The order in which `--help` lists the packages' commands.
EXTRAS: Final = ("train", "export", "serve")
# What `protoserve GROUP --help` says of each group.
GROUPS: Final = {"data": "Make and look at data sets."}
FIGURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")

_OWN_PACKAGES = frozenset({"protoserve", "training", "export", "service"})
_FAILED = 2
_INTERRUPTED = 130


BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle ('protoserve export') or an ensemble.")
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="BUNDLE", help="Another bundle to answer together with, as one; may be repeated."),
]
TopKOption = Annotated[
    int | None,
    typer.Option(help="Prototypes to show per level, up to the bundle's limit.", show_default="5"),
]


class _RootCommand(TyperGroup):
    """Turns the errors that a user can meet into one line on standard error and an exit code."""

    def invoke(self, context: Any) -> Any:
        try:
            result = super().invoke(context)
            # Output that waits in the buffer would meet a closed pipe only when Python ends, and complain.
            sys.stdout.flush()
        except ProtoServeError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            extra = _extra_of(context.invoked_subcommand)
            if extra is None or not _is_third_party(error):
                raise
            what = f"'protoserve {context.invoked_subcommand}' (which imports {error.name})"
            _fail(str(MissingExtraError(what, extra)))
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise SystemExit(_INTERRUPTED) from None
        return result


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line: `protoserve …`; ends with SystemExit, 2 for every error that a user can mend."""
    build_app()(args=arguments, prog_name="protoserve")
    raise SystemExit(0)


def build_app() -> typer.Typer:
    """The root command with the commands of every package that is installed."""
    app = typer.Typer(
        cls=_RootCommand,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="Image classifiers that explain themselves: train, export, serve, and ask a bundle.",
        epilog="Example: protoserve predict bundles/grocery photo.jpg",
    )
    app.callback()(_root)
    app.command("predict", epilog="Example: protoserve predict bundles/grocery photo.jpg --top-k 3 --json")(predict)
    app.command("explain", epilog="Example: protoserve explain bundles/grocery photo.jpg -o explanation.png")(explain)
    app.command("inspect", epilog="Example: protoserve inspect bundles/grocery")(inspect)
    app.command("ensemble", epilog="Example: protoserve ensemble bundles/three bundles/a bundles/b bundles/c")(ensemble)
    app.command("score", epilog=score_command.EXAMPLE)(score_command.score)
    groups: dict[str, typer.Typer] = {}
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=_command_order):
        _, *group, name = entry_point.name.split(".")
        parent = app
        for word in group:
            if word not in groups:
                groups[word] = typer.Typer(no_args_is_help=True, help=GROUPS.get(word))
                app.add_typer(groups[word], name=word)
            parent = groups[word]
        _add_command(parent, entry_point, " ".join((*group, name)))
    return app


def predict(
    bundle: BundleArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="One or more picture files.")],
    top_k: TopKOption = None,
    alternatives: Annotated[int, typer.Option(help="Other nodes to show per level.")] = 3,
    maps: Annotated[bool, typer.Option("--maps", help="Add each prototype's similarity at every cell.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document: the prediction, or a list for several images."),
    ] = False,
    others: WithOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Predict the class of images at every level, with the evidence for it."""
    from protoserve.cli.terminal import prediction_tree
    from protoserve.inference.classifier import BATCH

    classifier = _load(bundle, others, device)
    predictions: list[Prediction] = []
    for start in range(0, len(images), BATCH):
        fitted = [classifier.fit(image) for image in images[start : start + BATCH]]
        predictions += classifier.predict_fitted(fitted, top_k=top_k, alternatives=alternatives, maps=maps)
    if as_json:
        documents = [prediction.model_dump(mode="json") for prediction in predictions]
        _print_json(documents if len(images) > 1 else documents[0], indent=None if maps else 2)
        return
    for image, prediction in zip(images, predictions, strict=True):
        _print(prediction_tree(image, prediction))


def explain(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help=f"The figure to write ({', '.join(FIGURE_SUFFIXES)}).")
    ],
    top_k: Annotated[int, typer.Option(help="Prototypes to draw per level.")] = 3,
    others: WithOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw an image with its evidence beside the prototypes' source patches, level by level."""
    if output.suffix.lower() not in FIGURE_SUFFIXES:
        raise InputError(
            f"{output}: can't write a figure as {output.suffix or 'a file without suffix'!r}; "
            f"name it with one of {', '.join(FIGURE_SUFFIXES)}"
        )
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder; make it first or give another --output")
    if output.is_dir() or (output.exists() and output.resolve() == image.resolve()):
        raise InputError(f"{output} is a folder or the image itself; give another --output")
    from protoserve.cli.figures import explain_figure
    from protoserve.files import new_file
    from protoserve.images.decoding import decode
    from protoserve.images.fitting import fit

    classifier = _load(bundle, others, device)
    decoded = decode(image)
    fitted = fit(decoded, classifier.bundle.input)
    shown = min(top_k, classifier.table.top_k) if top_k > 0 else top_k
    prediction = classifier.predict_fitted([fitted], top_k=shown, maps=True)[0]
    figure = explain_figure(classifier.bundle, decoded, prediction)
    try:
        with new_file(output) as draft:
            figure.save(draft)
    except OSError as error:
        raise InputError(f"{output}: can't write it ({error}); give another --output") from error
    typer.echo(f"{' › '.join(prediction.path)} ({prediction.levels[-1].probability:.1%}): wrote {output}")


def inspect(
    bundle: BundleArgument,
    others: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds: its taxonomy, prototypes, input, files, metrics and provenance."""
    from protoserve.cli.terminal import model_document, model_report
    from protoserve.inference.classifier import open_model

    opened = open_model([bundle, *others] if others else bundle)
    if as_json:
        _print_json(model_document(opened))
    else:
        for part in model_report(opened):
            _print(part)


def ensemble(
    directory: Annotated[Path, typer.Argument(metavar="ENSEMBLE", help="The folder to write.")],
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="The members, on one taxonomy.")],
    name: Annotated[str | None, typer.Option(help="The model's name; by default made of the members'.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an ensemble that is there.")] = False,
) -> None:
    """Copy bundles into one folder that answers as one, wherever a bundle is asked for.

    The members' scores are summed before the softmax (Chen et al. 2019), and each piece of evidence names its member.
    """
    from protoserve.bundle.ensemble import write_ensemble
    from protoserve.bundle.folder import read_bundle

    if name is not None and not name.strip():
        raise InputError("--name is empty; give the model a name, or leave it out")
    written = write_ensemble([read_bundle(bundle) for bundle in bundles], directory, name=name, overwrite=overwrite)
    typer.echo(f"{directory}   {written.name} {written.version[:19]}, {len(written.members)} members")


# ---- other packages' commands ------------------------------------------------------------------------------------


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=lambda on: _version(on), is_eager=True),
    ] = False,
) -> None:
    """Its docstring is the app's `help`."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"protoserve {__version__}")
        raise typer.Exit


def _command_order(entry_point: EntryPoint) -> tuple[int, str]:
    """Training's commands first, then export's, then the service's; within a package by name."""
    extra, _, command = entry_point.name.partition(".")
    return (EXTRAS.index(extra) if extra in EXTRAS else len(EXTRAS)), command


def _add_command(parent: typer.Typer, entry_point: EntryPoint, words: str) -> None:
    """Add one command to the root or to a group; where its module can't be imported, a stub that names the extra."""
    extra, name = entry_point.name.split(".")[0], entry_point.name.split(".")[-1]
    try:
        function: Callable[..., Any] = entry_point.load()
    except ModuleNotFoundError as error:
        # A library that the module imports, or the module itself where only some packages are deployed.
        missing = str(error.name)

        def stub() -> None:
            raise MissingExtraError(f"'protoserve {words}' (which imports {missing})", extra)

        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        parent.command(name, help=f"Needs the extra {extra!r}, which is not installed.", context_settings=anything)(
            stub
        )
    else:
        parent.command(name)(function)


def _extra_of(command: str | None) -> str | None:
    """The extra of a command or group of another package; None for the root's own."""
    for entry_point in entry_points(group=ENTRY_POINTS):
        extra, *words = entry_point.name.split(".")
        if words[:1] == [command]:
            return extra
    return None


def _is_third_party(error: ModuleNotFoundError) -> bool:
    return error.name is not None and error.name.partition(".")[0] not in _OWN_PACKAGES


# ---- input and output --------------------------------------------------------------------------------------


def _fail(message: str) -> NoReturn:
    # What other libraries say within our messages may run over several lines.
    typer.echo("error: " + re.sub(r"\s*\n\s*", " ", message.strip()), err=True)
    raise SystemExit(_FAILED)


def _load(bundle: Path, others: list[Path] | None, device: Device) -> Classifier:
    from protoserve.inference.classifier import load

    return load([bundle, *others] if others else bundle, device=device)


def _print_json(document: Any, indent: int | None = 2) -> None:
    # Escaped beyond ASCII, for not every terminal's encoding holds every label.
    typer.echo(json.dumps(document, indent=indent, allow_nan=False))


def _print(part: RenderableType) -> None:
    from rich.console import Console

    # Piped output is for other programs, which wrap (or not) as they like.
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(part)


if __name__ == "__main__":
    main()
