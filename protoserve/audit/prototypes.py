"""Which prototypes tell their class from its siblings, and which deserve a look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.masks import Masks
from protoserve.audit.parts import centre_values
from protoserve.audit.purity import Nearest
from protoserve.audit.sample import fitted_pictures
from protoserve.audit.subject import BATCH, Subject
from protoserve.bundle.manifest import PrototypeRecord
from protoserve.bundle.truth_card import Place, PrototypeFlags, Suspect
from protoserve.data.dataset import Dataset
from protoserve.images.geometry import Geometry, InputRule
from protoserve.similarity_statistics import TELLING, SimilarityStatistics, SimilaritySums

# A prototype is flagged `border` if this share of what it adds to its node comes from there, and this many times as
# much as by chance. In a small map nearly all cells are at the border, which then says nothing.
BORDER_SHARE: Final = 0.8
BORDER_TIMES: Final = 1.5
# It is flagged `off_object` if at most this share comes from the object, and at most this part of what chance gives.
OBJECT_SHARE: Final = 0.2
OBJECT_TIMES: Final = 0.5


@dataclass(frozen=True)
class Origin:
    """Where contributions come from, over the pictures of each prototype's own node: `share` float64 [prototypes] of
    the positive contributions whose cell is there, NaN without any; `adds` float64 [prototypes], the mean contribution
    from there, in logits; and `chance`, the share of all cells that are there."""

    share: NDArray[np.float64]
    adds: NDArray[np.float64]
    chance: float


@dataclass(frozen=True)
class Measured:
    """What was measured on `images` pictures of `split`: the `statistics` of similarities, and what comes from the
    map's `border` and from `off_object`; None without masks. `nearest` are the most similar pictures among those with a
    mask, whose `geometries` are here by number."""

    statistics: SimilarityStatistics
    border: Origin
    off_object: Origin | None
    nearest: Nearest
    geometries: Mapping[int, Geometry]
    split: str
    images: int


class _OriginSums:
    """Sums over pictures of what prototypes add to their own node, and of what of that comes from one place."""

    def __init__(self, prototypes: int) -> None:
        self.there, self.anywhere, self.pictures = np.zeros((3, prototypes))
        self.cells = self.cells_there = 0

    def add(
        self, adds: NDArray[np.float64], own: NDArray[np.bool_], cell: NDArray[np.int64], place: NDArray[np.bool_]
    ) -> None:
        """Add pictures: what each prototype `adds` to its node, whether the picture is its `own` and its best `cell`,
        all [images, prototypes], and whether each cell is at the `place`, bool [images, cells]."""
        there = np.take_along_axis(place, cell, axis=1)
        self.there += np.where(own & there, adds, 0.0).sum(axis=0)
        self.anywhere += np.where(own, adds, 0.0).sum(axis=0)
        self.pictures += own.sum(axis=0)
        self.cells += place.size
        self.cells_there += int(place.sum())

    def origin(self) -> Origin | None:
        """The figures of all pictures so far; None without pictures."""
        if not self.cells:
            return None
        with np.errstate(invalid="ignore"):
            share = np.where(self.anywhere > 0, self.there / self.anywhere, np.nan)
        return Origin(share, self.there / np.maximum(self.pictures, 1), self.cells_there / self.cells)


def measure(
    subject: Subject,
    rule: InputRule,
    dataset: Dataset,
    advance: Callable[[int], None] = lambda images: None,
    masks: Masks | None = None,
) -> Measured:
    """Run the graph on all pictures of a data set; calls `advance(images)` after each batch.

    With `masks`, pictures that have one also say what comes from off the object: the mask is 0 under the centre of the
    cell's box.
    """
    sums = SimilaritySums(subject.taxonomy, subject.table)
    rows, columns = subject.grid
    edge = np.ones(subject.grid, dtype=np.bool_)
    edge[1 : rows - 1, 1 : columns - 1] = False
    children = subject.table.prototype_child
    border, off_object = _OriginSums(len(children)), _OriginSums(len(children))
    weight, usual = subject.own_weights()
    nearest = Nearest(len(children))
    geometries: dict[int, Geometry] = {}
    batch: list[NDArray[np.uint8]] = []
    values: list[NDArray[np.uint8] | None] = []
    done = 0
    for index, fitted in enumerate(fitted_pictures(dataset, rule)):
        batch.append(fitted.array)
        geometry = fitted.geometry
        size = (geometry.picture_height, geometry.picture_width)
        mask = None if masks is None else masks.read(dataset.images[index], size)
        values.append(None if mask is None else centre_values(subject, mask, geometry))
        if mask is not None:
            geometries[index] = geometry
        if len(batch) == BATCH or index + 1 == len(dataset):
            outputs = subject.run(np.stack(batch))
            leaves = dataset.leaves[done : done + len(batch)]
            sums.add(outputs.similarity, leaves)
            # [images, prototypes] whether the picture is of the prototype's own class.
            own = subject.taxonomy.leaves_below[:, leaves][children].T
            adds = np.maximum(weight * (outputs.similarity.astype(np.float64) - usual), 0.0)
            border.add(adds, own, outputs.cell, np.broadcast_to(edge.ravel(), (len(batch), edge.size)))
            masked = [image for image, found in enumerate(values) if found is not None]
            if masked:
                off = np.stack([found == 0 for found in values if found is not None])
                off_object.add(adds[masked], own[masked], outputs.cell[masked], off)
                nearest.add(outputs.similarity[masked], outputs.cell[masked], [done + image for image in masked])
            advance(len(batch))
            done += len(batch)
            batch, values = [], []
    at_border = border.origin()
    assert at_border is not None
    return Measured(
        statistics=sums.statistics(),
        border=at_border,
        off_object=off_object.origin(),
        nearest=nearest,
        geometries=geometries,
        split=dataset.split,
        images=len(dataset),
    )


def prototype_flags(records: Sequence[PrototypeRecord], measured: Measured) -> PrototypeFlags:
    """Flag the prototypes that are always on, off the object, at the border, or of a source that an earlier one has."""
    statistics = measured.statistics
    known: set[tuple[object, ...]] = set()
    duplicates = []
    for record in records:
        source = (record.source_image, record.source_box)
        if source in known:
            duplicates.append(record.id)
        known.add(source)
    border = _at_border(measured.border)
    off_object = [] if measured.off_object is None else _off_object(measured.off_object)
    suspects = (
        _suspects(records, border, "at the border", measured.border)
        if measured.off_object is None
        else _suspects(records, off_object, "off the object", measured.off_object)
    )
    return PrototypeFlags(
        prototypes=len(records),
        telling=int((statistics.effect >= TELLING).sum()),
        always_on=np.flatnonzero(statistics.always_on).tolist(),
        border=border,
        off_object=off_object,
        duplicates=duplicates,
        suspects=suspects,
        split=measured.split,
        images=measured.images,
    )


def _at_border(border: Origin) -> list[int]:
    limit = max(BORDER_SHARE, BORDER_TIMES * border.chance)
    found: list[int] = np.flatnonzero(np.nan_to_num(border.share) >= limit).tolist()
    return found


def _off_object(off_object: Origin) -> list[int]:
    limit = min(OBJECT_SHARE, OBJECT_TIMES * (1.0 - off_object.chance))
    found: list[int] = np.flatnonzero(1.0 - np.nan_to_num(off_object.share) <= limit).tolist()
    return found


def _suspects(records: Sequence[PrototypeRecord], found: list[int], place: Place, origin: Origin) -> list[Suspect]:
    """The prototypes `found` at a place, those that add most first."""
    return [
        Suspect(
            prototype=prototype,
            node=records[prototype].child,
            place=place,
            share=float(origin.share[prototype]),
            chance=origin.chance,
            adds=float(origin.adds[prototype]),
        )
        for prototype in sorted(found, key=lambda number: (-origin.adds[number], number))
    ]
