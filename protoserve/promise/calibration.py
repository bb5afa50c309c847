"""The calibration pictures behind the promise, kept so that any precision and any restriction can be promised later.

A run and a bundle keep, for each selection picture, its leaf, the log-probabilities of all leaves and whether the
picture fits each group of competing nodes (`protoserve.novelty`): `calibration/leaf.npy`, `log_probability.npy` and
`fits.npy`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import BundleError
from protoserve.files import write_bytes
from protoserve.novelty import known_along
from protoserve.promise.threshold import Threshold, Walks, promised_threshold
from protoserve.restriction import Restriction

# The most numbers kept: 64 MB. With more leaves × pictures, a random part of the pictures is kept, which is still a
# fair sample.
_MOST: Final = 16_000_000
_FILES: Final = {"leaf": np.int32, "log_probability": np.float32, "fits": np.bool_}


@dataclass(frozen=True)
class Calibration:
    """The network's answers for N labelled pictures that it was not trained on.

    `leaf` int32 [N] are indices into the taxonomy's leaves, `log_probability` float32 [N, leaves] the network's, as
    served, and `fits` bool [N, groups] whether the picture reaches the novelty threshold of each group of competing
    nodes; all True without thresholds.
    """

    leaf: NDArray[np.int32]
    log_probability: NDArray[np.float32]
    fits: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.leaf)

    def rows(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Calibration:
        """Return the pictures at `index`."""
        return Calibration(self.leaf[index], self.log_probability[index], self.fits[index])

    def walks(self, restriction: Restriction, group_of: NDArray[np.int64]) -> Walks:
        """Return the pictures that `restriction` allows, along their paths under it.

        `group_of` int64 [nodes] is that of `protoserve.novelty.NoveltyTable.group_of`.
        """
        own = self.rows(np.flatnonzero(restriction.log_weight[self.leaf] > -np.inf))
        log_probability = restriction.log_probability(own.log_probability)
        path = restriction.path(log_probability)
        truth = restriction.taxonomy.path_at_level[restriction.end[own.leaf]]
        on_path = path >= 0
        probability = np.exp(np.take_along_axis(log_probability, np.where(on_path, path, 0), axis=1))
        known = known_along(path, own.fits, group_of).sum(axis=1)
        right = np.logical_and.accumulate((path == truth) & on_path, axis=1).sum(axis=1)
        return Walks(np.where(on_path, probability, 0.0), known, right)

    def threshold(
        self, restriction: Restriction, group_of: NDArray[np.int64], precision: float, confidence: float
    ) -> Threshold:
        """Find the threshold of a precision for pictures that `restriction` allows; see `promised_threshold`."""
        walks = self.walks(restriction, group_of)
        return promised_threshold(walks, precision, confidence, restriction.certain_levels)


def kept_sample(calibration: Calibration, seed: int = 0) -> Calibration:
    """Return the pictures that a run or bundle keeps: all, or a random part where all would take too much space."""
    most = max(1, _MOST // calibration.log_probability.shape[1])
    if len(calibration) <= most:
        return calibration
    chosen = np.random.default_rng(seed).permutation(len(calibration))[:most]
    return calibration.rows(np.sort(chosen))


def write_calibration(calibration: Calibration, directory: Path) -> None:
    """Write the arrays into `directory`, each file atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, dtype in _FILES.items():
        buffer = io.BytesIO()
        np.save(buffer, getattr(calibration, name).astype(dtype), allow_pickle=False)
        write_bytes(directory / f"{name}.npy", buffer.getvalue())


def read_calibration(directory: Path, leaves: int, groups: int) -> Calibration:
    """Read what `write_calibration` wrote, for a network with these numbers of leaves and of groups.

    Raises BundleError for a file that is missing or is not such an array.
    """
    arrays = {}
    for name, dtype in _FILES.items():
        file = directory / f"{name}.npy"
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise BundleError(f"{file}: not an array of calibration pictures ({error}); export again") from error
        if array.dtype != dtype:
            raise BundleError(f"{file}: holds {array.dtype}, not {np.dtype(dtype)}; export again")
        arrays[name] = array
    found = Calibration(**arrays)
    images = len(found.leaf) if found.leaf.ndim == 1 else -1
    if found.log_probability.shape != (images, leaves) or found.fits.shape != (images, groups):
        raise BundleError(f"{directory}: its arrays don't fit a model of {leaves} leaves; export again")
    if images and (found.leaf.min() < 0 or found.leaf.max() >= leaves):
        raise BundleError(f"{directory}/leaf.npy: names a leaf that the model does not have; export again")
    if not np.isfinite(found.log_probability).all() or (found.log_probability > 1e-3).any():
        raise BundleError(f"{directory}/log_probability.npy: holds numbers that are not logarithms of probabilities")
    return found
