"""The audited pictures, at model size, each with another picture to swap regions with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoserve.cores import usable_cores
from protoserve.data.dataset import Dataset
from protoserve.errors import InputError
from protoserve.images.fitting import FittedImage, fit
from protoserve.images.geometry import Geometry, InputRule


@dataclass(frozen=True)
class Sample:
    """Pictures of a data set.

    `arrays` uint8 [images, height, width, 3] are at model size; `names` identify the images; `leaves` int64 [images]
    are places in `taxonomy.leaves`; `others` int64 [images] is the index of another picture of the sample, of another
    leaf if there is one.
    """

    names: tuple[str, ...]
    arrays: NDArray[np.uint8]
    geometries: tuple[Geometry, ...]
    leaves: NDArray[np.int64]
    others: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


def read_sample(
    dataset: Dataset, rule: InputRule, images: int, seed: int, advance: Callable[[int], None] = lambda images: None
) -> Sample:
    """Read `images` pictures of a data set, chosen at random by `seed`, or all if it has no more.

    Calls `advance(1)` after each. Raises InputError for fewer than 2 pictures, and as `decode` for a picture that can't
    be read.
    """
    chosen = choose(dataset, images, seed)
    if len(chosen) < 2:
        raise InputError(
            f"{dataset.root}: the audit compares pictures with each other, so it needs at least 2 of "
            f"{dataset.split!r}, not {len(chosen)}; raise --images or give another --split"
        )
    arrays, geometries = [], []
    for fitted in fitted_pictures(chosen, rule):
        arrays.append(fitted.array)
        geometries.append(fitted.geometry)
        advance(1)
    others = other_pictures(chosen.leaves, seed)
    return Sample(chosen.images, np.stack(arrays), tuple(geometries), chosen.leaves, others)


def choose(dataset: Dataset, images: int, seed: int) -> Dataset:
    """Return `images` pictures chosen at random by `seed`, in the data set's order; all if it has no more."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(np.sort(order[:images]))


def fitted_pictures(dataset: Dataset, rule: InputRule) -> Iterator[FittedImage]:
    """Yield all pictures at model size, in order; threads decode a batch ahead."""
    workers = usable_cores()
    with ThreadPoolExecutor(workers) as threads:
        for start in range(0, len(dataset), 8 * workers):
            indices = range(start, min(len(dataset), start + 8 * workers))
            yield from threads.map(lambda index: fit(dataset.picture(index), rule), indices)


def other_pictures(leaves: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Choose for each image another one at random, of another leaf if there is one: int64 [images]."""
    generator = np.random.default_rng([seed, 1])
    indices = np.arange(len(leaves))
    chosen = []
    for image, leaf in enumerate(leaves.tolist()):
        candidates = np.flatnonzero(leaves != leaf)
        chosen.append(generator.choice(candidates if len(candidates) else indices[indices != image]))
    return np.array(chosen, dtype=np.int64)
