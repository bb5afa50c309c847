"""The end of a run: its final network, the pictures of its prototypes, its scores, and the plots one looks at."""

from __future__ import annotations

import copy
import csv
import io
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.cli.figures import prototype_picture
from protoserve.files import write_bytes, write_text, yaml_text
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import PrototypeSource, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import Run, novelty_record
from protoserve.scores import scores, sibling_confusion
from training.data.pictures import fitted
from training.data.splits import Splits
from training.loop.answers import Answers, answer_dataset, compare_calibration, novelty_table
from training.loop.trainer import Trainer
from training.outcome.confusion import plot_confusion
from training.outcome.counts import write_counts
from training.outcome.novelty_report import known_shares
from training.outcome.patches import write_patches
from training.outcome.reliability import plot_reliability
from training.progress import tracked
from training.stages.autoencoder import AutoencoderTrainer

SAMPLES = 24


def finish(trainer: Trainer) -> dict[str, Any]:
    """Write everything that a finished run holds, `model.pt` last, and return its metrics.

    Validation and test are scored here, once, after every choice was made on the selection images.
    """
    run = Run(trainer.directory)
    sources = _sources(trainer)
    for number, source in enumerate(sources or []):
        run.picture(number).parent.mkdir(exist_ok=True)
        picture = trainer.splits.fit.picture(trainer.splits.fit.number(source.image)).picture
        buffer = io.BytesIO()
        prototype_picture(picture, source.box).save(buffer, "WEBP", quality=88, method=4)
        write_bytes(run.picture(number), buffer.getvalue())
    if sources is not None:
        write_patches(trainer, run, sources)
    write_bytes(trainer.directory / "samples.npy", parity_samples(trainer.splits, trainer.config.image, sources))
    metrics = final_metrics(trainer)
    write_text(trainer.directory / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    write_text(trainer.directory / "provenance.json", json.dumps(provenance(trainer), indent=1) + "\n")
    write_history(trainer.state.history, trainer.directory)
    plot_curves(trainer.state.history, trainer.directory / "curves.png", trainer.config.name)
    if "counts" in metrics:
        write_counts(metrics["counts"], trainer.directory, trainer.config.name)
    save_network(run.model, trainer.network, trainer.description, sources)
    shutil.rmtree(trainer.directory / "cache", ignore_errors=True)
    return metrics


def write_config(trainer: Trainer | AutoencoderTrainer) -> None:
    """The whole configuration, defaults included."""
    content = trainer.config.model_dump(mode="json")
    write_text(trainer.directory / "config.yaml", yaml_text(content))


def _sources(trainer: Trainer) -> list[PrototypeSource] | None:
    projection = trainer.state.projection
    if not isinstance(trainer.network, PrototypeNetwork) or projection is None:
        return None
    dataset, rule = trainer.splits.fit, trainer.config.image
    with torch.inference_mode():
        blank = torch.zeros(1, rule.height, rule.width, 3, dtype=torch.uint8, device=trainer.device)
        rows, columns = trainer.network.features(blank).shape[2:]
    sources = []
    with tracked(trainer.console, "prototype pictures", len(projection.image)) as advance:
        for image, cell, distance in zip(*(part.tolist() for part in projection[:3]), strict=True):
            geometry = dataset.geometry(image, rule)
            sources.append(
                PrototypeSource(
                    image=dataset.images[image],
                    cell=cell,
                    rows=rows,
                    columns=columns,
                    box=geometry.cell_box(cell, rows, columns, trainer.config.model.smoothing),
                    distance=distance,
                )
            )
            advance(1)
    return sources


def parity_samples(splits: Splits, rule: InputRule, sources: list[PrototypeSource] | None) -> bytes:
    """Pictures for the parity gate: some of the selection, and the source images of some prototypes, where a
    similarity is at its greatest and most easily wrong."""
    selection = splits.selection
    chosen = np.linspace(0, len(selection) - 1, min(SAMPLES, len(selection))).astype(np.int64)
    arrays = [fitted(selection, int(number), rule).array for number in chosen]
    images = list(dict.fromkeys(source.image for source in sources or []))
    for number in np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(np.int64):
        arrays.append(fitted(splits.fit, splits.fit.number(images[number]), rule).array)
    buffer = io.BytesIO()
    np.save(buffer, np.stack(arrays), allow_pickle=False)
    return buffer.getvalue()


def final_metrics(trainer: Trainer | AutoencoderTrainer) -> dict[str, Any]:
    """Scores on every split that there is, and the facts and seconds of the run; among the facts, what calibration and
    novelty thresholds do to each split.

    Writes the siblings' confusion of each split (`confusion.json`), and of the last one (test where there is one) its
    picture and the diagram of calibration.
    """
    splits, config = trainer.splits, trainer.config
    metrics: dict[str, Any] = {}
    facts: dict[str, Any] = copy.deepcopy(trainer.state.facts)
    record = novelty_record(facts)
    confusion: dict[str, dict[str, NDArray[np.int64]]] = {}
    answers: Answers | None = None
    for name, dataset in {
        "selection": splits.selection,
        "validation": splits.validation,
        "test": splits.test,
    }.items():
        if dataset is not None:
            answers = answer_dataset(trainer.network, dataset, config.image, trainer.device, trainer.console)
            metrics[name] = scores(answers.log_probability, dataset.leaves, dataset.taxonomy)
            confusion[name] = sibling_confusion(answers.log_probability, dataset.leaves, dataset.taxonomy)
            if "calibration" in facts:
                facts["calibration"][name] = compare_calibration(answers, dataset)
            if record is not None:
                facts["novelty"][name] = known_shares(answers, dataset, novelty_table(trainer.network), record)
    assert answers is not None  # there are always selection images
    last = splits.validation if splits.test is None else splits.test
    title = f"{config.name}, {last.split}"
    tables = {name: {parent: counts.tolist() for parent, counts in found.items()} for name, found in confusion.items()}
    write_text(trainer.directory / "confusion.json", json.dumps(tables) + "\n")
    picture = plot_confusion(list(confusion.values())[-1], last.taxonomy, title)
    write_bytes(trainer.directory / "confusion.png", picture)
    if "calibration" in facts:
        diagram = plot_reliability(answers.uncalibrated, answers.log_probability, last.leaves, last.taxonomy, title)
        write_bytes(trainer.directory / "calibration.png", diagram)
    return {**metrics, **facts, "seconds": round(trainer.state.seconds, 1)}


def provenance(trainer: Trainer | AutoencoderTrainer) -> dict[str, Any]:
    """What the run came from: configuration, seed, data, versions, device."""
    return {
        "config": trainer.config.model_dump(mode="json"),
        "seed": trainer.config.seed,
        "data": {"root": trainer.splits.fit.root.name, "fingerprint": trainer.splits.fingerprint},
        "left_out": dict(trainer.splits.left_out),
        "images": {"fit": len(trainer.splits.fit), "selection": len(trainer.splits.selection)},
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "python": platform.python_version(),
        "device": str(trainer.device),
    }


def write_history(history: list[dict[str, Any]], directory: Path) -> None:
    """One row per step, as CSV."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(history)
    write_text(directory / "history.csv", buffer.getvalue())


def plot_curves(history: list[dict[str, Any]], file: Path, name: str) -> None:
    """Losses and selection accuracy over the steps, with the projections marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] + 1 for row in history]
    terms = ("loss", "total", "cross_entropy", "cluster", "separation")
    for term in (*terms, "reconstruction", "prototype_near_code", "code_near_prototype"):
        points = [(step, row[term]) for step, row in zip(steps, history, strict=True) if term in row]
        if points:
            upper.plot(*zip(*points, strict=True), marker=".", label=term.replace("_", " "))
    for measure, label in (("selection_leaf", "leaf"), ("selection_level_1", "level 1")):
        points = [(step, 100 * row[measure]) for step, row in zip(steps, history, strict=True) if measure in row]
        lower.plot(*zip(*points, strict=True), marker=".", label=label)
    for axes in (upper, lower):
        for row, step in zip(history, steps, strict=True):
            if row["stage"] == "project":
                axes.axvline(step, color="0.8", zorder=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False)
    upper.set(ylabel="loss", title=f"{name}: training (grey lines are projections)")
    lower.set(ylabel="accuracy on selection images, %", xlabel="step")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_bytes(file, buffer.getvalue())
