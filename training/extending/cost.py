"""What a change costs the old classes: their accuracy on the selection images, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError
from protoserve.networks.head import PrototypeHead
from protoserve.scores import scores
from training.extending.changes import ChangedTree
from training.extending.measuring import log_probability


@dataclass(frozen=True)
class Cost:
    """The accuracy of the old classes' selection images at a level, before and after, in [0, 1]."""

    before: float
    after: float

    @property
    def points(self) -> float:
        """The loss in points."""
        return 100 * (self.before - self.after)


@dataclass(frozen=True)
class OldImages:
    """The selection images of the classes that stay: their `leaves` int64 [images] in the new tree, the accuracy at
    each level `before` the change, and the `similarity` float32 [images, P] to the new head's prototypes."""

    tree: ChangedTree
    leaves: NDArray[np.int64]
    before: Mapping[str, float]
    similarity: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        head: PrototypeHead,
        tree: ChangedTree,
        leaves: NDArray[np.int64],
        before: NDArray[np.float32],
        after: NDArray[np.float32],
    ) -> OldImages:
        """Describe the selection images of the old `head`: their old `leaves` int64 [images], their similarities
        `before` [images, old P] to its prototypes, and `after` [images that stay, P] to the new ones."""
        stay = tree.leaf_of[leaves] >= 0
        if not stay.any():
            return cls(tree, leaves[stay], {}, after)
        accuracy = scores(log_probability(head, before[stay]), leaves[stay], head.taxonomy).accuracy
        return cls(tree, tree.leaf_of[leaves[stay]], accuracy, after)

    def cost(self, head: PrototypeHead) -> dict[str, Cost]:
        """The cost of the new `head` at each level; empty without images."""
        if not len(self.leaves):
            return {}
        after = scores(log_probability(head, self.similarity), self.leaves, self.tree.taxonomy).accuracy
        return {level: Cost(self.before[level], after[level]) for level in self.before if level in after}


def largest_loss(cost: Mapping[str, Cost]) -> float:
    """The largest loss of any level, in points; 0 without images."""
    return max((one.points for one in cost.values()), default=0.0)


def refuse_loss(cost: Mapping[str, Cost], tolerance: float, images: int) -> None:
    """Raise InputError if a level loses more than `tolerance` points."""
    for level, one in cost.items():
        if one.points > tolerance + 1e-9:
            raise InputError(
                f"the old classes lose {one.points:.2f} points at {level} ({100 * one.before:.2f} → "
                f"{100 * one.after:.2f} % of {images} selection images), more than --tolerance {tolerance:g}; give "
                "more pictures of the new classes, or allow more"
            )
