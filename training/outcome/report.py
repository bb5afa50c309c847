"""The report of a run: its scores, curves, confusion, and every prototype with its nearest training patches."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

from PIL import Image

from protoserve.errors import InputError
from protoserve.files import yaml_text
from protoserve.names import visible
from protoserve.novelty import NoveltyTable
from protoserve.pages.crops import data_uri
from protoserve.reporting.mistakes import ChildConfusion
from protoserve.reporting.page import Report
from protoserve.reporting.pictures import PictureStore
from protoserve.reporting.prototypes import Neighbour, ReportedPrototype, told_apart
from protoserve.reporting.sections import ORDER
from protoserve.run.folder import Run, open_run
from protoserve.run.provenance import Provenance
from protoserve.run.records import AnalysedPrototype, Analysis, Confusion, ConfusionTables, Metrics, Split
from protoserve.run.similarities import read_similarities
from protoserve.similarity_statistics import SimilaritySums
from protoserve.taxonomy import Taxonomy
from training.outcome.charts import counts_figure, losses_figure, selection_figure, separation_figure, svg_or_note

# Sides in pixels of a prototype's own patch and of its neighbours'.
OWN: Final = 72
NEAR: Final = 56
# Of their WebP; small tiles with a frame take many bytes.
QUALITY: Final = 42
# A report shows about as many patches; each prototype has at least two and at most nine beside its own.
PATCHES: Final = 4000
LEAST: Final = 2
MOST: Final = 9


def run_report(run_directory: Path) -> Report:
    """Make the report of a finished run; it says which parts the run does not have, such as calibration if off.

    Raises InputError if the run is not finished or a part of it can't be read.
    """
    run = open_run(run_directory)
    metrics, provenance, analysis = run.metrics(), run.provenance(), run.analysis()
    split = next(iter(metrics.of(ORDER)), None)
    store = PictureStore()
    return Report(
        name=str(provenance.config.get("name", visible(run.directory.name))),
        facts=_facts(run, metrics, provenance),
        metrics=metrics,
        provenance=provenance,
        configuration=yaml_text(provenance.config),
        store=store,
        prototypes=[] if analysis is None else reported_prototypes(run, analysis, store),
        about_prototypes=_about(analysis),
        confusions=[] if split is None else sibling_confusions(run.confusion(), split, analysis),
        split=split or "",
        hint=_hint(run),
        charts=_charts(run, metrics, analysis),
        calibration_picture=_picture(run.directory / "calibration.png"),
        decoded_picture=_picture(run.directory / "prototypes.png"),
    )


def _facts(run: Run, metrics: Metrics, provenance: Provenance) -> str:
    model = provenance.config.get("model", {})
    kind = f"{model.get('kind', '')} network".strip().capitalize()
    backbone = f" on {model['backbone']}" if "backbone" in model and model.get("kind") != "autoencoder" else ""
    images = "–" if provenance.images is None else provenance.images.fit
    seconds = "" if metrics.seconds is None else f" in {metrics.seconds:.0f} s"
    seed = "–" if provenance.seed is None else provenance.seed
    return (
        f"{kind}{backbone}, run {visible(run.directory.name)}, seed {seed}, trained on {images} images{seconds} on "
        f"{provenance.device or '–'}."
    )


def _hint(run: Run) -> str:
    name = visible(run.directory.name)
    return (
        f"To see the pictures behind these numbers, with both explanations of each: protoserve export {name} --bundle "
        f"bundles/{name}, then protoserve report {name} --bundle bundles/{name} --data DIR."
    )


def _about(analysis: Analysis | None) -> str:
    if analysis is None:
        return (
            "This run has no prototypes with their nearest patches: it has a linear head, or an older version trained "
            "it."
        )
    return (
        "Beside each prototype's own patch are the nearest patches among the "
        f"{analysis.images} training images of all classes, nearest first; one of another class is framed and marked "
        "✕. Purity counts the patches of the prototype's own class among the nearest ones. Those that tell their class "
        "from its siblings best come first."
    )


def _charts(run: Run, metrics: Metrics, analysis: Analysis | None) -> dict[str, str]:
    history = read_history(run.directory / "history.csv")
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
    return charts


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


def sibling_confusions(confusion: Confusion | None, split: Split, analysis: Analysis | None) -> list[ChildConfusion]:
    """The confusion between siblings on a split, parents with the most mistakes first. Empty if the run has no
    confusion for the split, or no names of nodes."""
    tables: ConfusionTables | None = getattr(confusion, split, None)
    if tables is None or analysis is None:
        return []
    children: dict[str, list[str]] = {}
    for node in analysis.nodes:
        children.setdefault(node.name.rpartition("/")[0], []).append(node.name)
    found = [ChildConfusion(parent, children[parent], counts) for parent, counts in tables.items()]
    return sorted((table for table in found if table.mistakes), key=lambda table: (-table.mistakes, table.parent))


# ---- prototypes ------------------------------------------------------------------------------------------------------


def reported_prototypes(run: Run, analysis: Analysis, store: PictureStore) -> list[ReportedPrototype]:
    """The prototypes of the global analysis, in order of their numbers, with as many patches as a page can hold."""
    shown = max(LEAST, min(MOST, PATCHES // max(1, len(analysis.prototypes))))
    apart = siblings_apart(run, analysis)
    return [
        _reported(run, prototype, analysis, store, shown, apart[place] if apart else [])
        for place, prototype in enumerate(analysis.prototypes)
    ]


def _reported(
    run: Run,
    prototype: AnalysedPrototype,
    analysis: Analysis,
    store: PictureStore,
    shown: int,
    apart: list[tuple[str, float]],
) -> ReportedPrototype:
    tiles = _tiles(run.patches(prototype.id), analysis.tile, len(prototype.patches))
    source = prototype.source
    same = [patch.image == source.image and patch.box == source.box for patch in prototype.patches]
    if any(same):
        own = tiles[same.index(True)]
    else:
        with Image.open(io.BytesIO(_read(run.picture(prototype.id)))) as picture:
            own = picture.convert("RGB")
    others = [(tile, patch) for tile, patch, is_own in zip(tiles, prototype.patches, same, strict=True) if not is_own]
    notes = ["always on"] if prototype.separation is not None and prototype.separation.always_on else []
    notes += ["at the border"] if at_border(prototype, analysis) else []
    return ReportedPrototype(
        id=prototype.id,
        child=prototype.child,
        parent=prototype.parent,
        weight=prototype.weight,
        image=source.image,
        picture=store.add(own, OWN, quality=QUALITY),
        purity=prototype.purity,
        separation=prototype.separation,
        apart=apart,
        neighbours=[
            Neighbour(store.add(tile, NEAR, quality=QUALITY), patch.leaf, patch.own, patch.image)
            for tile, patch in others[:shown]
        ],
        notes=notes,
    )


def siblings_apart(run: Run, analysis: Analysis) -> list[list[tuple[str, float]]]:
    """By prototype, the siblings that it tells its class from, measured on the fit images; empty if the run keeps no
    similarities."""
    kept = read_similarities(run.directory, len(analysis.prototypes))
    if kept is None:
        return []
    names = [node.name for node in analysis.nodes]
    parents = {name.rpartition("/")[0] for name in names}
    leaves = [name for name in names if name not in parents]
    taxonomy = Taxonomy.from_dict({"nodes": [name.split("/") for name in names], "folders": leaves})
    children = [taxonomy.index[prototype.child] for prototype in analysis.prototypes]
    sums = SimilaritySums(taxonomy, NoveltyTable.of(taxonomy, analysis.kind, children))
    sums.add(kept.fit.similarity, kept.fit.leaves)
    return told_apart(sums, [node.label for node in analysis.nodes])


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


def _tiles(file: Path, tile: int, count: int) -> list[Image.Image]:
    """The patches of a strip, one by one."""
    try:
        with Image.open(io.BytesIO(_read(file))) as strip:
            whole = strip.convert("RGB")
    except OSError as error:
        raise InputError(f"{file}: can't read the picture ({error}); train again") from error
    return [whole.crop((tile * place, 0, tile * (place + 1), tile)) for place in range(count)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: can't read the picture ({error.strerror}); train again") from error


def _picture(file: Path) -> str | None:
    """A PNG file as a `data:` URI, or None if there is no such file."""
    return data_uri(file.read_bytes()) if file.is_file() else None
