"""How last layers are fitted again for new classes (see `protoserve.networks.refitting`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# From favouring new classes to favouring the old ones.
BALANCES: Final = (1.0, 0.5, 0.0)
RIDGES: Final = (0.003, 0.03)


@dataclass(frozen=True)
class RefitSetting:
    """How strongly a refit is held to the weights that it starts from (`ridge`), and how much a new class of few
    pictures counts: its images weigh (images of a mean leaf / its images) ** `balance`."""

    ridge: float = RIDGES[0]
    balance: float = BALANCES[0]


def refit_settings() -> Iterator[tuple[RefitSetting, ...]]:
    """Yield the settings to try: for each balance, the one that favours new classes most first, one per ridge."""
    for balance in BALANCES:
        yield tuple(RefitSetting(ridge, balance) for ridge in RIDGES)


def image_weights(leaves: NDArray[np.int64], fresh: NDArray[np.bool_], balance: float) -> NDArray[np.float64]:
    """Return the weight of each image, float64 [images], 1 but for images of `fresh` leaves (bool [leaves]) that have
    fewer images than a mean leaf. `leaves` int64 [images] are those of the images."""
    counts = np.bincount(leaves, minlength=len(fresh)).astype(np.float64)
    mean = counts[counts > 0].mean()
    weight = np.where(fresh & (counts > 0), np.maximum(mean / np.maximum(counts, 1), 1.0) ** balance, 1.0)
    return np.asarray(weight[leaves])
