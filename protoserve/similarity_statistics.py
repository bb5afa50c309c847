"""How similar pictures usually are to each prototype, and how well it tells its own class from the siblings.

Both come from the pictures below the parent in whose group a prototype competes; each child counts the same, however
many pictures it has. numpy alone: the network's similarities and an exported graph's go through the same sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.novelty import NoveltyTable
from protoserve.run.records import Separation, SeparationRecord
from protoserve.taxonomy import Taxonomy

# Below half a standard deviation a prototype hardly tells siblings apart (Cohen 1988: a small effect).
ALWAYS_ON: Final = 0.5
# From one standard deviation on, it tells its class from the siblings.
TELLING: Final = 1.0


@dataclass(frozen=True)
class SimilarityStatistics:
    """Per prototype, float64 [prototypes]: `usual`, the mean similarity over the group's children; `own`, the mean over
    its own child's pictures; `siblings`, the mean over the other children; and `deviation`, the pooled standard
    deviation of the two. A mean over no pictures is NaN, and so is what depends on it."""

    usual: NDArray[np.float64]
    own: NDArray[np.float64]
    siblings: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @property
    def effect(self) -> NDArray[np.float64]:
        """(own − siblings) / deviation (Cohen 1988, d); 0 where it can't be computed."""
        with np.errstate(invalid="ignore", divide="ignore"):
            effect = (self.own - self.siblings) / self.deviation
        return np.asarray(np.nan_to_num(effect, nan=0.0, posinf=float(np.finfo(np.float32).max), neginf=0.0))

    @property
    def always_on(self) -> NDArray[np.bool_]:
        """Whether a prototype hardly tells its class from the siblings: an effect below `ALWAYS_ON`."""
        return np.asarray(self.effect < ALWAYS_ON)

    def of_prototype(self, prototype: int) -> Separation | None:
        """Return one prototype's part; None where its own class or the siblings have no pictures."""
        own, siblings = float(self.own[prototype]), float(self.siblings[prototype])
        if not np.isfinite([own, siblings]).all():
            return None
        effect, always_on = float(self.effect[prototype]), bool(self.always_on[prototype])
        return Separation(own=own, siblings=siblings, effect=effect, always_on=always_on)

    def record(self) -> SeparationRecord:
        """Return how many prototypes tell their class from the siblings, and how many are always on."""
        telling, always_on = int((self.effect >= TELLING).sum()), int(self.always_on.sum())
        return SeparationRecord(telling=telling, always_on=always_on, prototypes=len(self.own))


class SimilaritySums:
    """Sums of similarities over batches of pictures; their order and size change nothing but the last digits."""

    def __init__(self, taxonomy: Taxonomy, table: NoveltyTable) -> None:
        self.table = table
        path = taxonomy.path_at_level[taxonomy.label_nodes]
        group_of, member_of = np.full((2, table.nodes + 1), -1, dtype=np.int64)
        group_of[table.members] = np.repeat(np.arange(len(table.groups)), table.sizes)
        member_of[table.members] = np.arange(len(table.members)) - np.repeat(table.offsets, table.sizes)
        # [labels, levels] the groups that a label lies below, and its member in each; −1 for none.
        self._groups, self._members = group_of[path], member_of[path]
        self._groups[path < 0] = -1
        self.prototype_group = group_of[table.prototype_child]
        self.prototype_member = member_of[table.prototype_child]
        bounds = np.searchsorted(self.prototype_group, np.arange(len(table.groups) + 1))
        self._prototypes = [slice(*bounds[group : group + 2]) for group in range(len(table.groups))]
        shapes = [(size, part.stop - part.start) for size, part in zip(table.sizes, self._prototypes, strict=True)]
        self._count = [np.zeros((size, 1)) for size, _ in shapes]
        self._total = [np.zeros(shape) for shape in shapes]
        self._squares = [np.zeros(shape) for shape in shapes]

    def add(self, similarity: NDArray[np.floating[Any]], leaves: NDArray[np.int64]) -> None:
        """Add pictures: `similarity` [images, prototypes], and `leaves` int64 [images], places in `taxonomy.leaves`.

        Those of pictures that are labelled only down to an inner node are places in `taxonomy.label_nodes`; such a
        picture counts down to there.
        """
        values = similarity.astype(np.float64)
        groups, members = self._groups[leaves], self._members[leaves]
        for group in np.unique(groups[groups >= 0]).tolist():
            images, levels = np.nonzero(groups == group)
            own, member = values[images, self._prototypes[group]], members[images, levels]
            np.add.at(self._count[group], member, 1.0)
            np.add.at(self._total[group], member, own)
            np.add.at(self._squares[group], member, own * own)

    def statistics(self) -> SimilarityStatistics:
        """The statistics of all pictures so far."""
        columns = []
        for group, part in enumerate(self._prototypes):
            with np.errstate(invalid="ignore"):
                mean, square = self._total[group] / self._count[group], self._squares[group] / self._count[group]
            own = self.prototype_member[part][None] == np.arange(len(mean))[:, None]  # [members, prototypes]
            seen = np.broadcast_to(self._count[group] > 0, own.shape)
            usual = _mean(mean, seen)
            of_own, of_siblings = _mean(mean, own & seen), _mean(mean, ~own & seen)
            variances = [_mean(square, chosen & seen) - _mean(mean, chosen & seen) ** 2 for chosen in (own, ~own)]
            deviation = np.sqrt(np.maximum(sum(variances) / 2, 0.0))
            columns.append(np.stack([usual, of_own, of_siblings, deviation]))
        return SimilarityStatistics(*np.concatenate(columns, axis=1))

    def against_members(self) -> list[tuple[list[int], NDArray[np.float64]]]:
        """Return, by group, its member nodes and what its prototypes tell apart: float64 [members, prototypes] by how
        much a prototype is more similar to pictures of its own child than to those of the member.

        The unit is the pooled standard deviation (Cohen 1988, d). NaN for the own child, and where there are no
        pictures or no deviation.
        """
        result = []
        for group, part in enumerate(self._prototypes):
            with np.errstate(invalid="ignore", divide="ignore"):
                mean, square = self._total[group] / self._count[group], self._squares[group] / self._count[group]
                variance = np.maximum(square - mean**2, 0.0)
                own = self.prototype_member[part], np.arange(part.stop - part.start)
                effect = (mean[own] - mean) / np.sqrt((variance[own] + variance) / 2)
            effect[own] = np.nan
            effect[~np.isfinite(effect)] = np.nan
            result.append((list(self.table.groups[group].children), effect))
        return result


def _mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[columns] the mean over the `chosen` rows; NaN where none is."""
    count = chosen.sum(axis=0)
    total = np.where(chosen, values, 0.0).sum(axis=0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
