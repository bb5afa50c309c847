"""The promise of a run: thresholds from the selection images, scored on every split (see `protoserve.promise`).

Nothing is trained here. The selection images have also chosen epochs, temperatures and novelty thresholds, which
docs/training.md weighs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from protoserve.data.dataset import Dataset
from protoserve.networks.model_file import Network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import Thresholds
from protoserve.promise.calibration import Calibration, kept_sample, read_calibration
from protoserve.promise.measuring import answer_scores, promise_metrics, promise_scores
from protoserve.promise.threshold import Walks
from protoserve.restriction import unrestricted
from protoserve.run.folder import Run
from protoserve.run.promise_records import AnswerScores, PromiseMetrics
from protoserve.run.records import NoveltyThresholds, Split
from protoserve.schema import NoveltyRecord
from protoserve.taxonomy import Kind, Taxonomy
from training.loop.answers import Answers, novelty_table
from training.sections.stages import PromiseConfig


def scored_pictures(answers: Answers, dataset: Dataset, network: Network, novelty: NoveltyRecord | None) -> Calibration:
    """Put the answers for a split into the form that the promise is made from."""
    taxonomy, table = dataset.taxonomy, novelty_table(network)
    fits = np.ones((len(dataset), len(table.groups)), dtype=np.bool_)
    if novelty is not None:
        children = table.prototype_child.tolist()
        thresholds = Thresholds.of(taxonomy, kind_of(network), children, novelty.score, novelty.thresholds)
        fits = thresholds.fits(answers.novelty[novelty.score])
    log_probability = answers.log_probability[:, list(taxonomy.leaves)]
    return Calibration(dataset.leaves.astype(np.int32), log_probability, fits)


def kind_of(network: Network) -> Kind:
    """Return the kind of a network, which decides which nodes compete."""
    return "linear" if isinstance(network, LinearNetwork) else network.head.kind


def walks_of(pictures: Calibration, network: Network, taxonomy: Taxonomy) -> Walks:
    """Return the pictures along their predicted paths."""
    return pictures.walks(unrestricted(taxonomy), novelty_table(network).group_of(kind_of(network)))


def make_promise(
    network: Network,
    datasets: Mapping[Split, Dataset],
    answers: Mapping[Split, Answers],
    novelty: NoveltyThresholds | None,
    setting: PromiseConfig,
) -> tuple[Calibration, PromiseMetrics]:
    """Fit the promise on the selection images, and score it on every split.

    Returns the calibration pictures to keep and the metrics.
    """
    record = None if novelty is None else novelty.record()
    pictures = {split: scored_pictures(answers[split], dataset, network, record) for split, dataset in datasets.items()}
    pictures["selection"] = kept_sample(pictures["selection"])
    walks = {split: walks_of(found, network, datasets[split].taxonomy) for split, found in pictures.items()}
    metrics = promise_metrics(walks["selection"], setting.precision, setting.confidence)
    scored: dict[str, Any] = {
        split: {stated: answer_scores(found, value) for stated, value in metrics.thresholds.items()}
        for split, found in walks.items()
    }
    return pictures["selection"], metrics.model_copy(update=scored)


def evaluate_promise(run: Run, network: Network, answers: Answers, dataset: Dataset) -> dict[str, AnswerScores] | None:
    """Score a finished run's promise on a split, by stated precision; None if the run makes none.

    `resplits` says how often it holds when the run's calibration pictures and those of the split change sides.
    """
    metrics = run.metrics()
    if metrics.promise is None:
        return None
    table, promise = novelty_table(network), metrics.promise
    kept = read_calibration(run.calibration, len(dataset.taxonomy.leaves), len(table.groups))
    novelty = None if metrics.novelty is None else metrics.novelty.record()
    calibration = walks_of(kept, network, dataset.taxonomy)
    walks = walks_of(scored_pictures(answers, dataset, network, novelty), network, dataset.taxonomy)
    return promise_scores(walks, calibration, promise.thresholds, promise.confidence)
