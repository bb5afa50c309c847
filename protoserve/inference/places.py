"""Where a prototype was found in the sender's picture, and where it came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from protoserve.images.geometry import Cells, Geometry
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.schema import Box, EvidenceSource


@dataclass(frozen=True)
class Place:
    """The `box` of a prototype's best cell and the region `seen` from it, in the sender's pixels; its `member` of an
    ensemble (None in a bundle), that member's `cells`, and its `source`."""

    member: int | None
    cells: Cells
    box: Box
    seen: Box | None
    source: EvidenceSource


class Places:
    """The places of prototypes in one picture, whose `geometry` maps cells to the sender's pixels.

    `href` maps a prototype to the URL of its picture. Most of an answer's evidence shares a few cells, so their boxes
    are computed once.
    """

    def __init__(self, table: EvidenceTable, geometry: Geometry, href: Callable[[int], str] | None) -> None:
        self._table, self._geometry, self._href = table, geometry, href
        self._boxes: dict[tuple[int, int], tuple[Box, Box | None]] = {}

    def of(self, prototype: int, cell: int) -> Place:
        """Return the place of a prototype whose best cell is `cell`."""
        table = self._table
        member = bisect_right(table.first_prototypes, prototype) - 1
        cells = table.cells[member]
        boxes = self._boxes.get((member, cell))
        if boxes is None:
            boxes = self._geometry.cell_box(cell, cells), self._geometry.seen_box(cell, cells)
            self._boxes[member, cell] = boxes
        own = None if table.model.members is None else member
        return Place(own, cells, *boxes, self._source(prototype))

    def _source(self, prototype: int) -> EvidenceSource:
        """Return the prototype's training patch. The table keeps it, because the next picture has it with the same
        address."""
        href = None if self._href is None else self._href(prototype)
        source = self._table.sources.get(prototype)
        if source is None or source.href != href:
            record = self._table.prototypes[prototype]
            source = EvidenceSource(image=record.source_image, box=record.source_box, href=href)
            self._table.sources[prototype] = source
        return source
