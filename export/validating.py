"""Scores an exported graph on a data set, with the same metrics as the run's network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import Bundle
from protoserve.data.checking import without_broken
from protoserve.data.dataset import Dataset, read_labelled
from protoserve.device import Device
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.inference.classifier import open_model
from protoserve.inference.engine import Outputs
from protoserve.inference.ensemble_engine import open_engine
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.required import known_with_required
from protoserve.promise.measuring import joined, promise_scores
from protoserve.promise.threshold import Walks
from protoserve.run.promise_records import AnswerScores
from protoserve.run.records import Evaluation
from protoserve.scores import scores


def validate(
    bundle: Path | Sequence[Path],
    data: Path,
    split: str,
    *,
    device: Device = "auto",
    batch: int = 16,
    skip_broken: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a bundle's `model.onnx` on one split, and its promise, as `evaluate` does a run's.

    `bundle` is the folder of a bundle or an ensemble, or the folders of several bundles, which form an ensemble. Calls
    `advance(images in the batch, images in total)` after each batch. With `skip_broken`, pictures that can't be read
    are left out and counted. Raises InputError for a split that does not exist and for pictures that can't be read,
    TaxonomyError for images of other classes, and as `protoserve.inference.classifier.load` does.
    """
    model = open_model(bundle)
    engine = open_engine(model, device=device)
    dataset = read_labelled(data, split, model.taxonomy, left_out=model.left_out)
    dataset, _ = without_broken(dataset, skip=skip_broken)
    began = time.perf_counter()
    table = EvidenceTable.of(model)
    log_probability, walks = [], []
    for indices, pictures in fitted_batches(dataset, model.input, batch):
        outputs = engine.run(pictures)
        log_probability.append(outputs.log_probability)
        walks.append(walks_of(outputs, dataset.leaves[indices.start : indices.stop], table))
        advance(len(indices), len(dataset))
    result = scores(np.concatenate(log_probability), dataset.leaves, dataset.taxonomy)
    return Evaluation(
        **dict(result),
        promise=_promise(model, joined(walks), table),
        passed_over=dict(dataset.passed_over),
        seconds=round(time.perf_counter() - began, 2),
    )


def walks_of(outputs: Outputs, leaves: NDArray[np.int64], table: EvidenceTable) -> Walks:
    """Return the pictures of a batch that are labelled down to a leaf along their predicted paths; `leaves` int64
    [images] are those of the data set."""
    taxonomy = table.bundle.taxonomy
    whole = leaves < len(taxonomy.leaves)
    path = outputs.path[whole]
    on_path = path >= 0
    log_probability, logit, similarity = (
        array[whole] for array in (outputs.log_probability, outputs.logit, outputs.similarity)
    )
    known = on_path
    if table.thresholds is not None:
        known = table.thresholds.of_outputs(path, log_probability, logit, similarity)
    if table.required:
        known = known_with_required(known, path, similarity, table.required)
    probability = np.exp(np.take_along_axis(log_probability.astype(np.float64), np.where(on_path, path, 0), axis=1))
    truth = taxonomy.path_at_level[taxonomy.leaf_nodes[leaves[whole]]]
    right = np.logical_and.accumulate((path == truth) & on_path, axis=1).sum(axis=1)
    return Walks(np.where(on_path, probability, 0.0), known.sum(axis=1), right)


def _promise(model: Model, walks: Walks, table: EvidenceTable) -> dict[str, AnswerScores] | None:
    """Score a bundle's promise on pictures, by stated precision; None for a model without one."""
    answering = table.answering
    if answering is None or not isinstance(model, Bundle) or model.manifest.promise is None:
        return None
    stated = model.manifest.promise.thresholds
    thresholds = {name: answering.threshold(table.everything, float(name)).value for name in stated}
    calibration = answering.calibration.walks(table.everything, answering.group_of)
    return promise_scores(walks, calibration, thresholds, answering.confidence)


def fitted_batches(dataset: Dataset, rule: InputRule, batch: int) -> Iterator[tuple[range, NDArray[np.uint8]]]:
    """Yield the indices of each batch and its pictures at model size, uint8 [N, height, width, 3], in order."""
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(dataset), batch):
            indices = range(start, min(len(dataset), start + batch))
            yield indices, np.stack(list(pool.map(lambda index: fit(dataset.picture(index), rule).array, indices)))
