"""How last layers are fitted again for new classes (see `protoserve.networks.refitting`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RefitSetting:
    """How strongly a refit is held to the weights that it starts from (`ridge`), and how much a class of few pictures
    counts: its images weigh (images of a mean class / its images) ** `balance`.

    The defaults favour the recall of new classes; they come from a short search on held-out photographs of three
    classes of one data set (`python -m benchmarks.accuracy.extending --choose`).
    """

    ridge: float = 0.001
    balance: float = 0.5


def image_weights(target: NDArray[np.int64], balanced: NDArray[np.bool_], balance: float) -> NDArray[np.float64]:
    """Return the weight of each image, float64 [images], 1 but for images of `balanced` members (bool [members]) that
    have fewer images than a mean member."""
    counts = np.bincount(target, minlength=len(balanced)).astype(np.float64)
    mean = counts[counts > 0].mean()
    weight = np.where(balanced & (counts > 0), np.maximum(mean / np.maximum(counts, 1), 1.0) ** balance, 1.0)
    return np.asarray(weight[target])
