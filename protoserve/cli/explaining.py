"""The command `explain`: a figure, a page, or a folder of pages with an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from protoserve.cli.options import (
    BundleArgument,
    ContrastOption,
    DeviceOption,
    WithOption,
    WithoutOption,
    chosen_model,
)
from protoserve.cli.output import console, say, say_line
from protoserve.errors import InputError
from protoserve.names import visible

if TYPE_CHECKING:
    from protoserve.images.decoded import DecodedImage
    from protoserve.inference.classifier import Classifier
    from protoserve.inference.options import OptionKeywords
    from protoserve.schema import Prediction

PAGE: Final = ".html"
SUFFIXES: Final = (PAGE, ".png", ".jpg", ".jpeg", ".webp")
INDEX: Final = "index.html"
_THUMBNAIL: Final = 440


def explain(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file, or a folder of them.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help=f"The page or figure to write ({', '.join(SUFFIXES)}); for a folder, a new folder."
        ),
    ],
    top_k: Annotated[int, typer.Option(help="Prototypes to draw per level.")] = 3,
    contrast: ContrastOption = None,
    without: WithoutOption = None,
    others: WithOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Show an image with its evidence beside the prototypes' source patches, level by level: as a web page or a figure.

    A folder of images becomes a folder of pages with an index.

    Example: protoserve explain bundles/grocery photo.jpg -o explanation.html
    """
    if not image.is_dir():
        _check_output(image, output)
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty folder; give a new folder for the pages of {image}")
    from protoserve.inference.classifier import load
    from protoserve.inference.option_text import numbers_of

    classifier = load(chosen_model(bundle, others), device=device)
    asked: OptionKeywords = {
        "top_k": min(top_k, classifier.table.top_k) if top_k > 0 else top_k,
        "contrast": contrast,
        "without": numbers_of(without, "--without "),
    }
    if image.is_dir():
        _explain_folder(classifier, image, output, asked)
    else:
        _explain_one(classifier, image, output, asked)


def _check_output(image: Path, output: Path) -> None:
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{output}: can't write a page or figure as {output.suffix or 'a file without suffix'!r}; "
            f"use one of {', '.join(SUFFIXES)}"
        )
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder; make it first or give another --output")
    if output.is_dir() or (output.exists() and output.resolve() == image.resolve()):
        raise InputError(f"{output} is a folder or the image itself; give another --output")


def _explain_one(classifier: Classifier, image: Path, output: Path, asked: OptionKeywords) -> None:
    from protoserve.cli.terminal import contrast_lines
    from protoserve.files import new_file
    from protoserve.images.decoding import decode
    from protoserve.pages.words import headline

    decoded = decode(image)
    prediction = _predicted(classifier, decoded, asked, maps=output.suffix.lower() != PAGE)
    if output.suffix.lower() == PAGE:
        _write_page(classifier, decoded, prediction, output, image.name)
    else:
        figure = _figure(classifier, decoded, prediction)
        try:
            with new_file(output) as draft:
                figure.save(draft)
        except OSError as error:
            raise InputError(f"{output}: can't write it ({error}); give another --output") from error
    say(f"{headline(prediction)}: wrote {output}")
    for line in contrast_lines(prediction):
        # Output into a pipe is read by programs, so its lines are not wrapped.
        console(width=10_000).print(line)


def _explain_folder(classifier: Classifier, folder: Path, output: Path, asked: OptionKeywords) -> None:
    """Write a page for each picture below a folder, and their index; a picture that can't be read is listed there."""
    from protoserve.cli.progress import progress
    from protoserve.data.folders import find_pictures, told
    from protoserve.files import make_folder, write_text
    from protoserve.images.decoding import decode
    from protoserve.pages.crops import data_uri, thumbnail, webp
    from protoserve.pages.index import Explained, index_page
    from protoserve.pages.words import extent

    found = find_pictures(folder)
    files = sorted(found.files)
    if not files:
        passed = f" ({told(found.passed_over)})" if found.passed_over else ""
        raise InputError(f"{folder}: holds no pictures{passed}; give a folder of pictures, or one picture")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output} lies in the folder of the pictures; give another --output")
    make_folder(output)
    entries, failures = [], []
    with progress("explaining", len(files)) as advance:
        for file in files:
            name = file.relative_to(folder).as_posix()
            try:
                decoded = decode(file)
            except InputError as error:
                failures.append((name, str(error)))
            else:
                prediction = _predicted(classifier, decoded, asked, maps=False)
                page = output / f"{name}{PAGE}"
                make_folder(page.parent)
                _write_page(classifier, decoded, prediction, page, name)
                small = data_uri(webp(thumbnail(decoded.picture, _THUMBNAIL), 75))
                entries.append(Explained(name, f"{name}{PAGE}", extent(prediction), small))
            advance(1)
    write_text(
        output / INDEX, index_page(f"{folder.resolve().name}, explained by {classifier.bundle.name}", entries, failures)
    )
    broken = f", {len(failures)} could not be read" if failures else ""
    count = "1 picture" if len(entries) == 1 else f"{len(entries)} pictures"
    say(f"{output / INDEX}: {count} explained{broken}")


def _predicted(classifier: Classifier, decoded: DecodedImage, asked: OptionKeywords, *, maps: bool) -> Prediction:
    from protoserve.images.fitting import fit

    options: OptionKeywords = {**asked, "maps": maps}
    return classifier.predict_fitted([fit(decoded, classifier.bundle.input)], **options)[0]


def _write_page(classifier: Classifier, decoded: DecodedImage, prediction: Prediction, file: Path, name: str) -> None:
    from protoserve.files import write_text
    from protoserve.inference.opened_pictures import pictures_of
    from protoserve.pages.answer import answer_page

    write_text(file, answer_page(prediction, pictures_of(decoded, classifier.bundle), name))


def _figure(classifier: Classifier, decoded: DecodedImage, prediction: Prediction) -> Any:
    from protoserve.cli.figures import explain_figure
    from protoserve.cli.lettering import FONT, undrawable

    figure = explain_figure(classifier.bundle, decoded, prediction)
    if (text := undrawable(level.label for level in prediction.levels)) is not None:
        say_line(
            f"note: no font of this machine has all characters of {visible(text)!r}, so the figure shows '?'; install "
            f"one, such as Noto Sans, or name a font file in {FONT}",
            error=True,
        )
    return figure
