"""How pictures are brought to model size, and where a model pixel lies in the sender's picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from protoserve.schema import Box, Contract

# Left, top, right and bottom, to a fraction of a pixel.
Region: TypeAlias = tuple[float, float, float, float]


class InputRule(Contract):
    """How a picture becomes the graph's input: resized to `height` × `width` pixels, uint8 RGB, no normalisation.

    `stretch` takes the whole picture, `pad` the whole picture and a grey border, `crop` the largest centred part of
    the input's shape, or `share` of its sides: 0.875 is what ImageNet weights are usually tested with.
    """

    height: int = Field(gt=0, description="Height in pixels.")
    width: int = Field(gt=0, description="Width in pixels.")
    resize: Literal["stretch", "crop", "pad"] = Field(description="How another shape of picture becomes this one.")
    share: float = Field(default=1.0, gt=0, le=1, description="Share of the sides that `crop` takes.")
    interpolation: Literal["bilinear-antialiased"] = Field(
        default="bilinear-antialiased", description="Written into manifests for other languages; there is one rule."
    )


@dataclass(frozen=True)
class Geometry:
    """Where a model pixel lies in the sender's upright picture: `x = scale_x · model_x + offset_x`, y alike.

    Coordinates are continuous, pixel `i` reaching from `i` to `i + 1`.
    """

    picture_width: int
    picture_height: int
    model_width: int
    model_height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def cell_box(self, cell: int, rows: int, columns: int, smoothing: int = 1) -> Box:
        """The sender's pixels of one cell of a `rows` × `columns` feature map: left, top, right, bottom.

        Right and bottom are exclusive. The box is the cell's own share of the input grid, not its receptive
        field, which is larger; with `smoothing` (odd, in cells) it is that of the square of cells around it. It is
        clipped to the picture and at least one pixel wide and high; a cell that lies wholly in padding gets the
        nearest pixels of the picture. Raises ValueError for a cell outside the map.

        >>> Geometry(400, 200, 100, 100, 4.0, 2.0, 0.0, 0.0).cell_box(5, rows=2, columns=4)
        (100, 100, 200, 200)
        """
        if not 0 <= cell < rows * columns:
            raise ValueError(f"cell {cell} is outside a feature map of {rows} × {columns} cells")
        row, column = divmod(cell, columns)
        across = self.scale_x * self.model_width / columns
        down = self.scale_y * self.model_height / rows
        reach = smoothing // 2
        left, right = _pixels(
            self.offset_x, across, max(0, column - reach), min(columns, column + reach + 1), self.picture_width
        )
        top, bottom = _pixels(self.offset_y, down, max(0, row - reach), min(rows, row + reach + 1), self.picture_height)
        return left, top, right, bottom


@dataclass(frozen=True)
class Placement:
    """What a rule does to a picture of one size.

    `region` of the sender's picture is resized to `size` (width, height) and laid at `origin` (left, top) of the
    model's picture; what it does not cover is padding.
    """

    region: Region
    size: tuple[int, int]
    origin: tuple[int, int]


def placement_of(width: int, height: int, rule: InputRule) -> Placement:
    """Which part of a picture of `width` × `height` pixels goes where.

    `stretch` takes the whole picture; `crop` the largest centred part of the model's shape, or `rule.share` of
    its sides (to a fraction of a pixel); `pad` scales the whole picture to fit and centres it, an odd pixel of padding
    going to the right or bottom.

    >>> placement_of(30, 20, InputRule(height=64, width=64, resize="crop")).region
    (5.0, 0.0, 25.0, 20.0)
    """
    size = (rule.width, rule.height)
    region = (0.0, 0.0, float(width), float(height))
    origin = (0, 0)
    wider = width * rule.height >= height * rule.width
    if rule.resize == "crop" and wider:
        part = min(height * rule.width / rule.height, float(width))
        region = _centred(width, height, part * rule.share, height * rule.share)
    elif rule.resize == "crop":
        part = min(width * rule.height / rule.width, float(height))
        region = _centred(width, height, width * rule.share, part * rule.share)
    elif rule.resize == "pad":
        if wider:
            size = (rule.width, _rounded_quotient(height * rule.width, width))
        else:
            size = (_rounded_quotient(width * rule.height, height), rule.height)
        origin = ((rule.width - size[0]) // 2, (rule.height - size[1]) // 2)
    return Placement(region, size, origin)


def geometry_of(width: int, height: int, rule: InputRule) -> Geometry:
    """Where the model's pixels lie in a picture of `width` × `height` pixels, without resizing it.

    >>> geometry_of(30, 20, InputRule(height=64, width=64, resize="crop")).offset_x
    5.0
    """
    placement = placement_of(width, height, rule)
    left, top, right, bottom = placement.region
    scale_x = (right - left) / placement.size[0]
    scale_y = (bottom - top) / placement.size[1]
    return Geometry(
        picture_width=width,
        picture_height=height,
        model_width=rule.width,
        model_height=rule.height,
        scale_x=scale_x,
        scale_y=scale_y,
        offset_x=left - scale_x * placement.origin[0],
        offset_y=top - scale_y * placement.origin[1],
    )


def _centred(width: int, height: int, across: float, down: float) -> Region:
    return (width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2


def _rounded_quotient(numerator: int, denominator: int) -> int:
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def _pixels(offset: float, step: float, start: int, end: int, limit: int) -> tuple[int, int]:
    # Rounding both ends alike makes neighbouring boxes touch without overlap.
    first = min(max(math.floor(offset + step * start + 0.5), 0), limit - 1)
    last = min(math.floor(offset + step * end + 0.5), limit)
    return first, max(last, first + 1)
