"""The prototypes of a report: what each one tells apart, and the training patches that it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.names import one_line
from protoserve.run.records import Purity, Separation
from protoserve.similarity_statistics import TELLING, SimilaritySums

# So many siblings are named that a prototype tells its class from, and that it does not.
_NAMED: Final = 3


@dataclass(frozen=True)
class Neighbour:
    """A training patch near a prototype: the number of its `picture`, its leaf, whether that is of the prototype's
    `own` class, and its image."""

    picture: int
    leaf: str
    own: bool
    image: str


@dataclass(frozen=True)
class ReportedPrototype:
    """A prototype of a report.

    `picture` is the number of its training patch's; `parent` is empty for the root; `weight` is that for its own
    child. `apart` are siblings with the effect by which the prototype tells its class from each, the largest first;
    `notes` are what people or an audit say about it, such as `always on`.
    """

    id: int
    child: str
    parent: str
    weight: float
    image: str
    picture: int | None
    purity: Purity | None = None
    separation: Separation | None = None
    apart: Sequence[tuple[str, float]] = ()
    neighbours: Sequence[Neighbour] = ()
    notes: Sequence[str] = field(default=())

    def document(self, images: dict[tuple[str, str], int]) -> dict[str, Any]:
        """Return the prototype as JSON for the page's script; adds what its patches are of to `images`, (image, leaf) →
        number, so that their names are written once."""
        separation = self.separation
        return {
            "id": self.id,
            "node": self.child,
            "parent": self.parent,
            "weight": round(self.weight, 3),
            "image": one_line(self.image),
            "picture": self.picture,
            "purity": None if self.purity is None else [self.purity.own, self.purity.nearest],
            "separation": None
            if separation is None
            else [round(separation.own, 2), round(separation.siblings, 2), round(separation.effect, 2)],
            "apart": [[label, round(effect, 1)] for label, effect in _named(self.apart)],
            "near": [
                [near.picture, images.setdefault((near.image, near.leaf), len(images)), int(near.own)]
                for near in self.neighbours
            ],
            "notes": list(self.notes),
        }


def _named(apart: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The siblings that a prototype tells its class from best, and those that it tells it from least."""
    return [*apart[:_NAMED], *apart[_NAMED:][-_NAMED:]]


@dataclass(frozen=True)
class GroupSeparation:
    """How well the prototypes that compete below `parent` tell classes apart: their number, how many are `telling` or
    `always_on`, and the median `effect`."""

    parent: str
    prototypes: int
    telling: int
    always_on: int
    effect: float


def group_separations(prototypes: Iterable[ReportedPrototype]) -> list[GroupSeparation]:
    """Return the separation of the prototypes by parent, in the given order, without those that were not measured."""
    found: dict[str, list[Separation]] = {}
    for prototype in prototypes:
        if prototype.separation is not None:
            found.setdefault(prototype.parent, []).append(prototype.separation)
    return [
        GroupSeparation(
            parent,
            len(group),
            sum(separation.effect >= TELLING for separation in group),
            sum(separation.always_on for separation in group),
            median(separation.effect for separation in group),
        )
        for parent, group in found.items()
    ]


def told_apart(sums: SimilaritySums, labels: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Return, by prototype, the siblings with the effect by which it tells its class from each, the largest first.

    `labels` are those of all nodes. Siblings without pictures are left out.
    """
    result: list[list[tuple[str, float]]] = []
    for members, effects in sums.against_members():
        for column in effects.T:
            known: NDArray[np.intp] = np.flatnonzero(np.isfinite(column))
            order = known[np.argsort(-column[known], kind="stable")]
            result.append([(labels[members[index]], float(column[index])) for index in order])
    return result
