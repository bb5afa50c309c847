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


def place_of(
    prototype: int, cell: int, table: EvidenceTable, geometry: Geometry, href: Callable[[int], str] | None
) -> Place:
    """Return the place of a prototype whose best cell is `cell`; `href` maps it to the URL of its picture."""
    record = table.prototypes[prototype]
    member = bisect_right(table.first_prototypes, prototype) - 1
    cells = table.cells[member]
    return Place(
        member=None if table.model.members is None else member,
        cells=cells,
        box=geometry.cell_box(cell, cells),
        seen=geometry.seen_box(cell, cells),
        source=EvidenceSource(
            image=record.source_image,
            box=record.source_box,
            href=None if href is None else href(prototype),
        ),
    )
