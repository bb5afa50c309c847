"""A close view of a prototype's patch, cut from the picture of the prototype."""

from __future__ import annotations

import io
from typing import Final

from protoserve.images.decoding import decode
from protoserve.images.geometry import Cells, InputRule, geometry_of

# The side of the view relative to the patch's longer side: some surroundings tell what the patch is part of.
CONTEXT: Final = 2.0
# A smaller view would show little but the frame that the picture has around the patch.
SMALLEST: Final = 48


def patch_view(content: bytes, rule: InputRule, cells: Cells, cell: int) -> bytes:
    """Return a square around the patch of `cell`, as WebP, from an encoded picture of the whole source.

    The picture may be of any size: a cell's share of a picture depends on its aspect ratio alone. The square is at most
    the picture's shorter side, and lies inside it.
    """
    picture = decode(content).picture.convert("RGB")
    left, top, right, bottom = geometry_of(picture.width, picture.height, rule).cell_box(cell, cells)
    side = min(max(round(CONTEXT * max(right - left, bottom - top)), SMALLEST), *picture.size)
    corner = [
        max(0, min(extent - side, round((start + end - side) / 2)))
        for start, end, extent in ((left, right, picture.width), (top, bottom, picture.height))
    ]
    view = io.BytesIO()
    picture.crop((corner[0], corner[1], corner[0] + side, corner[1] + side)).save(view, "WEBP", quality=90, method=2)
    return view.getvalue()
