"""The end of a run: write its network, pictures of prototypes, scores and figures."""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from protoserve.cli.figures import prototype_picture
from protoserve.cores import usable_cores
from protoserve.data.dataset import Dataset
from protoserve.files import write_bytes, write_text, yaml_text
from protoserve.images.geometry import InputRule
from protoserve.names import visible
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.backbones import reference_of
from protoserve.networks.model_file import Network, NetworkDescription, PrototypeSource, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.promise.calibration import write_calibration
from protoserve.promise.measuring import warnings
from protoserve.run.folder import Run
from protoserve.run.provenance import DataReference, ImageNumbers, Provenance
from protoserve.run.records import (
    CalibrationChange,
    CalibrationRecord,
    Confusion,
    KnownShares,
    Metrics,
    NoveltyThresholds,
    Split,
    StageRecords,
)
from protoserve.scores import scores, sibling_confusion
from training.config import Config
from training.data.pictures import fitted
from training.data.splits import Splits
from training.loop.answers import Answers, answer_dataset, compare_calibration, novelty_table
from training.loop.trainer import Trainer
from training.outcome.charts import (
    History,
    confusion_figure,
    curves_figure,
    reliability_figure,
    write_figure,
)
from training.outcome.counts import write_counts
from training.outcome.decoded import write_decoded
from training.outcome.keeping import keep_similarities
from training.outcome.novelty_report import known_shares
from training.outcome.patches import write_patches
from training.outcome.promising import make_promise
from training.progress import tracked
from training.prototypes.projection import Projection

# The largest number of selection images, and of prototypes' source images, in `samples.npy`.
SAMPLES = 24


def finish(trainer: Trainer) -> Metrics:
    """Write the pictures of the prototypes and all other results of a run, and return its metrics."""
    run, network, projection = Run(trainer.directory), trainer.network, trainer.state.projection
    splits, rule = trainer.splits, trainer.config.image
    patches, statistics = trainer.state.patches, trainer.state.separation
    sources = None
    if isinstance(network, PrototypeAutoencoder):
        memory = trainer.memory
        sources, trainer.state.records.autoencoder = write_decoded(
            run, network, memory.fit, memory.selection, splits.fit, rule, trainer.console
        )
    elif isinstance(network, PrototypeNetwork) and projection is not None:
        sources = prototype_sources(
            network, trainer.description, projection, splits.fit, trainer.device, trainer.console
        )
        write_prototype_pictures(run, splits.fit, dict(enumerate(sources)))
        keep_similarities(trainer)
    if sources is not None and patches is not None and statistics is not None:
        write_patches(
            run,
            trainer.explained_network.head,
            splits.fit,
            patches,
            sources,
            statistics,
            rule=rule,
            cells=trainer.explained_network.cells(sources[0].rows, sources[0].columns),
            purity_of=trainer.config.prune.nearest,
            console=trainer.console,
        )
    return write_outcome(trainer, run, sources)


def write_outcome(
    trainer: Trainer,
    run: Run,
    sources: list[PrototypeSource] | None,
    answers: dict[Split, Answers] | None = None,
) -> Metrics:
    """Write the results of a run other than the pictures of its prototypes, and return its metrics.

    Scores validation and test here, once, after all choices were made on the selection images, unless `answers` are
    given. Writes `model.pt` last, because it marks the run as finished. Skips a figure that can't be drawn, with a
    warning.
    """
    config, splits, directory, console = trainer.config, trainer.splits, run.directory, trainer.console
    write_bytes(directory / "samples.npy", parity_samples(splits.fit, splits.selection, config.image, sources))
    if answers is None:
        answers = answer_splits(trainer.network, splits, config.image, trainer.device, console)
    records = trainer.state.records
    metrics = final_metrics(trainer.network, splits, answers, records, trainer.state.seconds)
    calibration, promise = make_promise(
        trainer.network, _scored_datasets(splits), answers, records.novelty, config.promise
    )
    metrics = metrics.model_copy(update={"promise": promise})
    write_calibration(calibration, run.calibration)
    for line in warnings(promise):
        console.print(line, markup=False, soft_wrap=True)
    write_text(directory / "metrics.json", json.dumps(metrics.model_dump(), indent=1) + "\n")
    origin = provenance(config, splits, trainer.device)
    write_text(directory / "provenance.json", json.dumps(origin.model_dump(), indent=1) + "\n")
    write_history(trainer.state.history, directory)
    write_figure(directory / "curves.png", lambda: curves_figure(trainer.state.history, config.name), console)
    write_confusion(directory, splits, answers, config.name, console)
    if metrics.calibration is not None:
        write_reliability(directory, splits, answers, config.name, console)
    if metrics.counts is not None:
        write_counts(metrics.counts, directory, config.name, console)
    save_network(run.model, trainer.network, trainer.description, sources)
    shutil.rmtree(directory / "cache", ignore_errors=True)
    return metrics


def write_config(config: Config, directory: Path) -> None:
    """Write the complete configuration, including defaults, as `config.yaml`."""
    content = config.model_dump(mode="json")
    write_text(directory / "config.yaml", yaml_text(content))


# ---- prototypes ------------------------------------------------------------------------------------------------------


def prototype_sources(
    network: PrototypeNetwork,
    description: NetworkDescription,
    projection: Projection,
    dataset: Dataset,
    device: torch.device,
    console: Console,
) -> list[PrototypeSource]:
    """The cells of `dataset` from which the last projection cut the prototypes."""
    rule = description.input
    with torch.inference_mode():
        blank = torch.zeros(1, rule.height, rule.width, 3, dtype=torch.uint8, device=device)
        rows, columns = network.features(blank).shape[2:]
    cells = network.cells(rows, columns)
    sources = []
    with tracked(console, "prototype pictures", len(projection.image)) as advance:
        for image, cell, distance in zip(*(part.tolist() for part in projection[:3]), strict=True):
            geometry = dataset.geometry(image, rule)
            sources.append(
                PrototypeSource(
                    image=dataset.images[image],
                    cell=cell,
                    rows=rows,
                    columns=columns,
                    box=geometry.cell_box(cell, cells),
                    distance=distance,
                )
            )
            advance(1)
    return sources


def write_prototype_pictures(run: Run, dataset: Dataset, sources: Mapping[int, PrototypeSource]) -> None:
    """Write `prototypes/NNNN.webp` for each of these prototypes: its source image with the patch marked."""

    def write(prototype: int, source: PrototypeSource) -> None:
        run.picture(prototype).parent.mkdir(exist_ok=True)
        picture = dataset.picture(dataset.index(source.image)).picture
        buffer = io.BytesIO()
        prototype_picture(picture, source.box).save(buffer, "WEBP", quality=88, method=4)
        write_bytes(run.picture(prototype), buffer.getvalue())

    with ThreadPoolExecutor(usable_cores()) as pool:
        # Iterating raises what a thread raised.
        for _ in pool.map(write, sources.keys(), sources.values()):
            pass


def parity_samples(
    fit: Dataset, selection: Dataset, rule: InputRule, sources: Sequence[PrototypeSource] | None
) -> bytes:
    """The content of `samples.npy`, the pictures for the parity gate, uint8 [samples, H, W, 3].

    They are some images of `selection`, and some source images of prototypes from `fit`, if it holds them: an extended
    run does not know pictures that are labelled only down to an inner node. There a similarity reaches its maximum,
    where errors are the largest.
    """
    chosen = np.linspace(0, len(selection) - 1, min(SAMPLES, len(selection))).astype(np.int64)
    arrays = [fitted(selection, image, rule).array for image in chosen.tolist()]
    known = set(fit.images)
    images = list(dict.fromkeys(source.image for source in sources or [] if source.image in known))
    for index in np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(np.int64):
        arrays.append(fitted(fit, fit.index(images[index]), rule).array)
    buffer = io.BytesIO()
    np.save(buffer, np.stack(arrays), allow_pickle=False)
    return buffer.getvalue()


# ---- scores ----------------------------------------------------------------------------------------------------------


def answer_splits(
    network: Network, splits: Splits, rule: InputRule, device: torch.device, console: Console
) -> dict[Split, Answers]:
    """The network's answers on every split of the data set."""
    return {
        split: answer_dataset(network, dataset, rule, device, console)
        for split, dataset in _scored_datasets(splits).items()
    }


def _scored_datasets(splits: Splits) -> dict[Split, Dataset]:
    datasets: dict[Split, Dataset] = {"selection": splits.selection, "validation": splits.validation}
    return datasets if splits.test is None else {**datasets, "test": splits.test}


def final_metrics(
    network: Network, splits: Splits, answers: dict[Split, Answers], records: StageRecords, seconds: float
) -> Metrics:
    """The scores on every split, and the records of the stages. Those of calibration and novelty also get the effect of
    temperatures and thresholds on each split."""
    datasets = _scored_datasets(splits)
    split_scores = {
        split: scores(answers[split].log_probability, dataset.leaves, dataset.taxonomy)
        for split, dataset in datasets.items()
    }
    updated = dict(records)
    if records.calibration is not None:
        updated["calibration"] = _with_changes(records.calibration, datasets, answers)
    if records.novelty is not None:
        updated["novelty"] = _with_known_shares(records.novelty, network, datasets, answers)
    recorded = {name: record for name, record in updated.items() if record is not None}
    return Metrics(**split_scores, **recorded, seconds=round(seconds, 1))


def _with_changes(
    calibration: CalibrationRecord, datasets: dict[Split, Dataset], answers: dict[Split, Answers]
) -> CalibrationRecord:
    changes: dict[str, CalibrationChange] = {
        split: compare_calibration(answers[split], dataset) for split, dataset in datasets.items()
    }
    return calibration.model_copy(update=changes)


def _with_known_shares(
    novelty: NoveltyThresholds, network: Network, datasets: dict[Split, Dataset], answers: dict[Split, Answers]
) -> NoveltyThresholds:
    table, record = novelty_table(network), novelty.record()
    shares: dict[str, KnownShares] = {
        split: KnownShares(**known_shares(answers[split], dataset, table, record))
        for split, dataset in datasets.items()
    }
    return novelty.model_copy(update=shares)


def provenance(config: Config, splits: Splits, device: torch.device) -> Provenance:
    """The origin of a run: configuration, seed, data, versions, device."""
    model = config.model
    backbone = None if model.kind == "autoencoder" else reference_of(model.backbone, model.weights)
    return Provenance(
        config=config.model_dump(mode="json"),
        seed=config.seed,
        data=DataReference(
            root=visible(splits.fit.root.name),
            fingerprint=splits.fingerprint,
            inner=None if splits.inner is None else splits.inner.fingerprint,
        ),
        left_out=dict(splits.left_out),
        broken=list(splits.broken),
        passed_over={split: dict(counts) for split, counts in splits.passed_over.items()},
        copies=dict(splits.copies),
        images=ImageNumbers(
            fit=len(splits.fit),
            selection=len(splits.selection),
            inner=0 if splits.inner is None else splits.inner.images,
        ),
        backbone=backbone,
        versions={name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        python=platform.python_version(),
        device=str(device),
    )


# ---- history and figures ---------------------------------------------------------------------------------------------


def write_history(history: History, directory: Path) -> None:
    """Write `history.csv`, one row per step."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(history)
    write_text(directory / "history.csv", buffer.getvalue())


def write_confusion(
    directory: Path, splits: Splits, answers: dict[Split, Answers], name: str, console: Console
) -> None:
    """Write the confusion between siblings on every split as `confusion.json`, and that on test (on validation if there
    is no test split) as `confusion.png`."""
    confusion: dict[Split, dict[str, NDArray[np.int64]]] = {
        split: sibling_confusion(answers[split].log_probability, dataset.leaves, dataset.taxonomy)
        for split, dataset in _scored_datasets(splits).items()
    }
    tables = {
        split: {parent: counts.tolist() for parent, counts in found.items()} for split, found in confusion.items()
    }
    record = Confusion.model_validate(tables)
    write_text(directory / "confusion.json", json.dumps(record.model_dump()) + "\n")
    split, last = _last(splits)
    write_figure(
        directory / "confusion.png",
        lambda: confusion_figure(confusion[split], last.taxonomy, f"{name}, {last.split}"),
        console,
        dpi=90,
    )


def write_reliability(
    directory: Path, splits: Splits, answers: dict[Split, Answers], name: str, console: Console
) -> None:
    """Write `calibration.png`, reliability before and after calibration on test, or on validation if there is no test
    split."""
    split, last = _last(splits)
    before, after = answers[split].uncalibrated, answers[split].log_probability
    write_figure(
        directory / "calibration.png",
        lambda: reliability_figure(before, after, last.leaves, last.taxonomy, f"{name}, {last.split}"),
        console,
    )


def _last(splits: Splits) -> tuple[Split, Dataset]:
    return ("validation", splits.validation) if splits.test is None else ("test", splits.test)
