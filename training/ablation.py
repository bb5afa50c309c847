"""`ablate`: train one run with all terms of the loss and one without each, and compare them in a table and a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from protoserve.device import Device
from protoserve.errors import InputError
from protoserve.files import make_folder, write_text
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import load_network
from protoserve.run.folder import Run
from training import running
from training.config import Config, read_config
from training.outcome.charts import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Prototypes of each run that the figure shows.
SHOWN = 15
Row = dict[str, str | float]


@dataclass(frozen=True)
class Variant:
    """A configuration with some terms of the loss at weight 0. `name` is its run's folder."""

    name: str
    label: str
    config: Config


@dataclass(frozen=True)
class Ablation:
    """One table row per variant, and its prototypes' pictures, each uint8 [H, W, 3]."""

    rows: list[Row]
    pictures: list[list[NDArray[np.uint8]]]


def variants(config: Config) -> list[Variant]:
    """The configuration itself, and one copy without each of the two terms that shape prototypes.

    These are R1 and R2 in an autoencoder (Li et al. 2018), Clust and Sep in the other networks (Chen et al. 2019).
    Raises InputError if such a term already has weight 0.
    """
    if config.model.kind == "autoencoder":
        section, terms = "autoencoder", {"prototype_near_code": "R1", "code_near_prototype": "R2"}
    else:
        section, terms = "loss", {"cluster": "Clust", "separation": "Sep"}
    weights = getattr(config, section)
    chosen = [Variant("both", f"{' and '.join(terms.values())} on", config)]
    for term, label in terms.items():
        if getattr(weights, term) == 0:
            raise InputError(f"{section}.{term} is 0 already; give it a weight to see its effect")
        changed = config.model_copy(update={section: weights.model_copy(update={term: 0.0})})
        chosen.append(Variant(f"without-{term.replace('_', '-')}", f"{label} off", changed))
    return chosen


def with_epochs(config: Config, epochs: int) -> Config:
    """A copy of the configuration with `epochs` epochs, in the autoencoder's training or in the joint stage."""
    section = "autoencoder" if config.model.kind == "autoencoder" else "joint"
    return config.model_copy(update={section: getattr(config, section).model_copy(update={"epochs": epochs})})


def ablate(config: Config, data: Path, out: Path, *, device: Device, console: Console) -> list[Row]:
    """Train each variant as a run below `out`. Write `ablation.{md,csv,json}` and `prototypes.png` there, and return
    the table's rows.

    Keeps finished runs and resumes unfinished ones. Raises InputError if a run below `out` has another configuration.
    """
    make_folder(out)
    chosen = variants(config)
    for variant in chosen:
        directory = out / variant.name
        if (directory / "model.pt").is_file():
            _check_same(directory, variant.config)
            console.print(f"{directory}: finished already", markup=False, soft_wrap=True)
            continue
        console.print(f"{directory}: {variant.label}", markup=False, soft_wrap=True)
        running.train(variant.config, data, directory, linear=False, resume=True, device=device, console=console)
    ablation = Ablation(
        [_row(variant, out / variant.name) for variant in chosen],
        [prototype_pictures(Run(out / variant.name)) for variant in chosen],
    )
    write_text(out / "ablation.md", markdown(ablation.rows))
    write_text(out / "ablation.csv", _csv(ablation.rows))
    write_text(out / "ablation.json", json.dumps(ablation.rows, indent=1) + "\n")
    write_figure(out / "prototypes.png", lambda: figure(ablation, config.name), console, dpi=120)
    return ablation.rows


def _check_same(directory: Path, config: Config) -> None:
    if read_config(directory / "config.yaml") != config:
        raise InputError(f"{directory}: holds a run of another configuration; give another --out or remove it")


def _row(variant: Variant, directory: Path) -> Row:
    """Accuracies in % on the test split (on validation if there is no test split), and measures of the prototypes."""
    metrics = Run(directory).metrics()
    split, scores = next(iter(metrics.of(("test", "validation")).items()))
    row: Row = {"variant": variant.label, "split": split}
    row |= {f"{level}, %": 100 * value for level, value in scores.accuracy.items()}
    if metrics.autoencoder is not None:
        return row | metrics.autoencoder.model_dump()
    if metrics.projection is not None:
        row["selection leaf before projection, %"] = 100 * metrics.projection.before.selection_leaf
        row["selection leaf after projection, %"] = 100 * metrics.projection.after.selection_leaf
    row["distance to projection"] = _last_projection(directory)
    return row


def _last_projection(directory: Path) -> float:
    """The mean squared distance by which the last projection moved the prototypes."""
    with (directory / "history.csv").open(encoding="utf-8", newline="") as stream:
        return float([row["mean_distance"] for row in csv.DictReader(stream) if row["stage"] == "project"][-1])


def prototype_pictures(run: Run) -> list[NDArray[np.uint8]]:
    """Pictures of up to `SHOWN` of a run's prototypes, evenly spaced, each uint8 [H, W, 3].

    An autoencoder's prototypes are decoded; other prototypes are shown by their source patches.
    """
    network, description, _ = load_network(run.model)
    count = len(description.prototype_child)
    chosen = np.linspace(0, count - 1, min(SHOWN, count)).astype(np.int64)
    if isinstance(network, PrototypeAutoencoder):
        with torch.inference_mode():
            drawn = network.decode(network.head.prototypes[torch.from_numpy(chosen)]).movedim(1, 3)
        return list((drawn * 255.0).round().byte().expand(-1, -1, -1, 3).numpy())
    return [np.asarray(Image.open(run.picture(prototype)).convert("RGB")) for prototype in chosen.tolist()]


# ---- table and figure ----------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def figure(ablation: Ablation, name: str) -> Figure:
    """One row of prototypes per variant; `name` is the run's, for the titles."""
    from matplotlib.figure import Figure

    columns = max(len(pictures) for pictures in ablation.pictures)
    sheet = Figure(figsize=(0.8 * columns, 1.2 * len(ablation.rows)), layout="constrained")
    strips = sheet.subfigures(len(ablation.rows), 1, squeeze=False)[:, 0]
    for strip, row, pictures in zip(strips, ablation.rows, ablation.pictures, strict=True):
        title = f"{name}, {row['variant']}: {row['leaf, %']:.2f} % of {row['split']}"
        strip.suptitle(title, fontsize=9, x=0.01, ha="left")
        for axes, picture in zip(strip.subplots(1, columns, squeeze=False)[0], pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
        for axes in strip.axes:
            axes.set_axis_off()
    return sheet
