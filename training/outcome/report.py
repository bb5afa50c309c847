"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from protoserve.errors import InputError
from protoserve.files import write_text, yaml_text
from protoserve.names import visible
from protoserve.run.folder import Run, open_run
from protoserve.run.records import (
    AnalysedPrototype,
    Analysis,
    Confusion,
    ConfusionTables,
    Metrics,
    SelectionAccuracy,
    Split,
)
from protoserve.similarity_statistics import ALWAYS_ON, TELLING
from training.outcome.charts import counts_figure, losses_figure, selection_figure, separation_figure, svg_or_note

# Longer side of a prototype's source picture, in pixels.
SOURCE_SIDE = 112
# Number of children up to which a confusion matrix fits on a page.
MATRIX = 40


@dataclass(frozen=True)
class SiblingConfusion:
    """Confusion among the children of `parent`: `counts` [true][predicted], and the `mistakes` among `images`."""

    parent: str
    labels: list[str]
    counts: list[list[int]]
    images: int
    mistakes: int


def write_report(run_directory: Path, file: Path) -> int:
    """Write the report of a finished run to `file`, and return its size in bytes.

    Raises InputError if the run is not finished or a part of it can't be read.
    """
    run = open_run(run_directory)
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}; make it, or give another --output")
    text = render(run)
    write_text(file, text)
    return len(text.encode("utf-8"))


def render(run: Run) -> str:
    """The page as HTML. It says which parts the run does not have, such as calibration if that was off."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "name": lambda key: key.replace("_", " "),
        "known": known,
    }
    metrics, provenance, analysis = run.metrics(), run.provenance(), run.analysis()
    history = read_history(run.directory / "history.csv")
    scores = metrics.of(("test", "validation", "selection"))
    main = next(iter(scores), None)
    charts = {
        "selection": svg_or_note(lambda: selection_figure(history), "selection", "Accuracy over the steps of training"),
        "losses": svg_or_note(lambda: losses_figure(history), "losses", "Terms of the loss over the steps of training"),
    }
    counts = metrics.counts
    if counts is not None:
        description = "Accuracy on the selection images against the number of prototypes"
        charts["counts"] = svg_or_note(lambda: counts_figure(counts), "counts", description)
    if analysis is not None and any(prototype.separation for prototype in analysis.prototypes):
        description = "Mean similarity of every prototype to its own class and to the siblings"
        charts["separation"] = svg_or_note(lambda: separation_figure(analysis.prototypes), "separation", description)
    return environment.get_template("report.html").render(
        name=provenance.config.get("name", visible(run.directory.name)),
        run=visible(run.directory.name),
        model=provenance.config.get("model", {}),
        provenance=provenance,
        metrics=metrics,
        scores=scores,
        main=main,
        levels=[] if main is None else list(scores[main].accuracy),
        charts=charts,
        counts=counts,
        stages=stage_table(metrics),
        confusions=[] if main is None else sibling_confusions(run.confusion(), main, analysis),
        matrix=MATRIX,
        confusion_picture=data_uri_of(run.directory / "confusion.png"),
        calibration_picture=data_uri_of(run.directory / "calibration.png"),
        decoded_picture=data_uri_of(run.directory / "prototypes.png"),
        analysis=analysis,
        groups=prototype_groups(run, analysis) if analysis is not None else [],
        separations=group_separations(analysis) if analysis is not None else [],
        telling=TELLING,
        always_on=ALWAYS_ON,
        configuration=yaml_text(provenance.config),
    )


def stage_table(metrics: Metrics) -> list[tuple[str, SelectionAccuracy]]:
    """(label, accuracies on the selection images) before and after the stages that change prototypes or their
    weights."""
    stages = {
        "projection": metrics.projection,
        "anchoring": metrics.anchored,
        "pruning": metrics.prune,
        "last layers": metrics.last_layers,
    }
    rows: list[tuple[str, SelectionAccuracy]] = []
    for label, record in stages.items():
        if record is not None:
            # Omit the row "before" if it equals the row "after" of the previous stage.
            if not rows or rows[-1][1] != record.before:
                rows.append((f"before {label}", record.before))
            rows.append((f"after {label}", record.after))
    return rows


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of `history.csv`, with numbers parsed and without the columns that a stage does not report."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return [
            {
                name: value if name == "stage" else int(value) if name in ("step", "epoch") else float(value)
                for name, value in row.items()
                if value
            }
            for row in rows
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: can't read the history ({error}); train again") from error


def sibling_confusions(confusion: Confusion | None, split: Split, analysis: Analysis | None) -> list[SiblingConfusion]:
    """The confusion between siblings on a split, parents with the most mistakes first. Empty if the run has no
    confusion for the split, or no names of nodes."""
    tables: ConfusionTables | None = getattr(confusion, split, None)
    if tables is None or analysis is None:
        return []
    children: dict[str, list[str]] = {}
    for node in analysis.nodes:
        children.setdefault(node.name.rpartition("/")[0], []).append(node.label)
    confusions = []
    for parent, counts in tables.items():
        images = sum(map(sum, counts))
        right = sum(row[child] for child, row in enumerate(counts))
        confusions.append(SiblingConfusion(parent, children[parent], counts, images, images - right))
    return sorted(confusions, key=lambda table: (-table.mistakes, table.parent))


@dataclass(frozen=True)
class PicturedPrototype:
    """A prototype of the global analysis, with its source picture and its strip of patches as `data:` URIs, and whether
    its source is at the `border` of the feature map."""

    record: AnalysedPrototype
    source_picture: str
    strip: str
    border: bool


@dataclass(frozen=True)
class PrototypeGroup:
    """The prototypes of one child; `parent` is empty if the child competes at the root."""

    child: str
    parent: str
    prototypes: list[PicturedPrototype]


def prototype_groups(run: Run, analysis: Analysis) -> list[PrototypeGroup]:
    """The prototypes grouped by child, in order of their numbers."""
    groups: dict[str, PrototypeGroup] = {}
    for prototype in analysis.prototypes:
        group = groups.setdefault(prototype.child, PrototypeGroup(prototype.child, prototype.parent, []))
        group.prototypes.append(
            PicturedPrototype(
                prototype,
                data_uri(_smaller(run.picture(prototype.id)), "image/webp"),
                data_uri(_read(run.patches(prototype.id)), "image/webp"),
                at_border(prototype, analysis),
            )
        )
    return list(groups.values())


def at_border(prototype: AnalysedPrototype, analysis: Analysis) -> bool:
    """Whether the prototype was cut from a cell at the border of the feature map; False where no cell lies inside.

    Runs of older versions name the cell only if the source is among the nearest patches.
    """
    source = prototype.source
    same = (patch.cell for patch in prototype.patches if (patch.image, patch.box) == (source.image, source.box))
    cell = next(same, None) if source.cell is None else source.cell
    if cell is None or min(analysis.rows, analysis.columns) < 3:
        return False
    row, column = divmod(cell, analysis.columns)
    return row in (0, analysis.rows - 1) or column in (0, analysis.columns - 1)


@dataclass(frozen=True)
class GroupSeparation:
    """How well the prototypes that compete below `parent` tell classes apart: their number, how many are `telling`,
    `always_on` or at the `border`, and the median `effect`."""

    parent: str
    prototypes: int
    telling: int
    always_on: int
    border: int
    effect: float


def group_separations(analysis: Analysis) -> list[GroupSeparation]:
    """The separation of the prototypes by parent, in the taxonomy's order; leaves out those that were not measured."""
    found: dict[str, list[AnalysedPrototype]] = {}
    for prototype in analysis.prototypes:
        found.setdefault(prototype.parent, []).append(prototype)
    rows = []
    for parent, prototypes in found.items():
        measured = [(one, one.separation) for one in prototypes if one.separation is not None]
        if measured:
            rows.append(
                GroupSeparation(
                    parent,
                    len(measured),
                    sum(separation.effect >= TELLING for _, separation in measured),
                    sum(separation.always_on for _, separation in measured),
                    sum(at_border(one, analysis) for one, _ in measured),
                    median(separation.effect for _, separation in measured),
                )
            )
    return rows


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the percent sign; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def known(value: object) -> object:
    """The value itself; a dash for None."""
    return "–" if value is None else value


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a `data:` URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def data_uri_of(file: Path) -> str | None:
    """A PNG file as a `data:` URI, or None if there is no such file."""
    return data_uri(file.read_bytes(), "image/png") if file.is_file() else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: can't read the picture ({error.strerror}); train again") from error


def _smaller(file: Path) -> bytes:
    """A prototype's source picture as a small WebP, so that a page can hold thousands."""
    try:
        with Image.open(io.BytesIO(_read(file))) as picture:
            scale = min(1.0, SOURCE_SIDE / max(picture.size))
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    except OSError as error:
        raise InputError(f"{file}: can't read the picture ({error}); train again") from error
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=70, method=4)
    return buffer.getvalue()
