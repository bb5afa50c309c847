"""Which prototypes tell their class from its siblings, and which deserve a look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.sample import fitted_pictures
from protoserve.audit.subject import BATCH, Subject
from protoserve.bundle.manifest import PrototypeRecord
from protoserve.bundle.truth_card import PrototypeFlags
from protoserve.data.dataset import Dataset
from protoserve.images.geometry import InputRule
from protoserve.similarity_statistics import TELLING, SimilarityStatistics, SimilaritySums

# A prototype is flagged `border` if its best cell lies there in this share of its own pictures, and this many times as
# often as by chance. In a small map nearly all cells are at the border, which then says nothing.
BORDER_SHARE: Final = 0.8
BORDER_TIMES: Final = 1.5


@dataclass(frozen=True)
class Measured:
    """Similarities on `images` pictures of `split`: the `statistics`; `border` float64 [prototypes], the share of a
    prototype's own pictures whose best cell is at the map's border, NaN without pictures; and `chance`, the share of
    the map's cells there."""

    statistics: SimilarityStatistics
    border: NDArray[np.float64]
    chance: float
    split: str
    images: int


def measure(
    subject: Subject, rule: InputRule, dataset: Dataset, advance: Callable[[int], None] = lambda images: None
) -> Measured:
    """Run the graph on all pictures of a data set; calls `advance(images)` after each batch."""
    sums = SimilaritySums(subject.taxonomy, subject.table)
    rows, columns = subject.grid
    edge = np.ones(subject.grid, dtype=np.bool_)
    edge[1 : rows - 1, 1 : columns - 1] = False
    children = subject.table.prototype_child
    hits, seen = np.zeros((2, len(children)))
    batch: list[NDArray[np.uint8]] = []
    done = 0
    for index, fitted in enumerate(fitted_pictures(dataset, rule)):
        batch.append(fitted.array)
        if len(batch) == BATCH or index + 1 == len(dataset):
            outputs = subject.run(np.stack(batch))
            leaves = dataset.leaves[done : done + len(batch)]
            sums.add(outputs.similarity, leaves)
            # [images, prototypes] whether the picture is of the prototype's own class.
            own = subject.taxonomy.leaves_below[:, leaves][children].T
            hits += (own & edge.ravel()[outputs.cell]).sum(axis=0)
            seen += own.sum(axis=0)
            advance(len(batch))
            done += len(batch)
            batch = []
    border = np.where(seen > 0, hits / np.maximum(seen, 1), np.nan)
    return Measured(sums.statistics(), border, float(edge.mean()), dataset.split, len(dataset))


def prototype_flags(records: Sequence[PrototypeRecord], measured: Measured) -> PrototypeFlags:
    """Flag the prototypes that are always on, at the border, or of a source that an earlier prototype has."""
    statistics, limit = measured.statistics, max(BORDER_SHARE, BORDER_TIMES * measured.chance)
    known: set[tuple[object, ...]] = set()
    duplicates = []
    for record in records:
        source = (record.source_image, record.source_box)
        if source in known:
            duplicates.append(record.id)
        known.add(source)
    return PrototypeFlags(
        prototypes=len(records),
        telling=int((statistics.effect >= TELLING).sum()),
        always_on=np.flatnonzero(statistics.always_on).tolist(),
        border=np.flatnonzero(np.nan_to_num(measured.border) >= limit).tolist(),
        duplicates=duplicates,
        split=measured.split,
        images=measured.images,
    )
