"""Scores an exported graph on a data set, with the same metrics as the run's network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.data.checking import without_broken
from protoserve.data.dataset import Dataset, read_split
from protoserve.device import Device
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.inference.classifier import open_model
from protoserve.inference.ensemble_engine import open_engine
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
    """Score a bundle's `model.onnx` on one split.

    `bundle` is the folder of a bundle or an ensemble, or the folders of several bundles, which form an ensemble. Calls
    `advance(images in the batch, images in total)` after each batch. With `skip_broken`, pictures that can't be read
    are left out and counted. Raises InputError for a split that does not exist and for pictures that can't be read,
    TaxonomyError for images of other classes, and as `protoserve.inference.classifier.load` does.
    """
    model = open_model(bundle)
    engine = open_engine(model, device=device)
    dataset = read_split(data, split, model.taxonomy, left_out=model.left_out)
    dataset, _ = without_broken(dataset, skip=skip_broken)
    began = time.perf_counter()
    log_probability = []
    for indices, pictures in fitted_batches(dataset, model.input, batch):
        log_probability.append(engine.run(pictures).log_probability)
        advance(len(indices), len(dataset))
    result = scores(np.concatenate(log_probability), dataset.leaves, dataset.taxonomy)
    return Evaluation(
        **dict(result), passed_over=dict(dataset.passed_over), seconds=round(time.perf_counter() - began, 2)
    )


def fitted_batches(dataset: Dataset, rule: InputRule, batch: int) -> Iterator[tuple[range, NDArray[np.uint8]]]:
    """Yield the indices of each batch and its pictures at model size, uint8 [N, height, width, 3], in order."""
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(dataset), batch):
            indices = range(start, min(len(dataset), start + batch))
            yield indices, np.stack(list(pool.map(lambda index: fit(dataset.picture(index), rule).array, indices)))
