"""The rule for resizing pictures to model size, and the mapping from model pixels to the sender's picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from protoserve.schema import Box, Contract

# Left, top, right and bottom in pixels, with fractions.
Region: TypeAlias = tuple[float, float, float, float]


class InputRule(Contract):
    """The rule that turns a picture into the graph's input, uint8 RGB of `height` × `width` pixels, not normalised.

    `stretch` resizes the whole picture, `pad` resizes it without distortion and adds a grey border, and `crop` takes
    the largest centred region of the input's aspect ratio, or `share` of that region's sides. ImageNet weights are
    usually tested with a share of 0.875.
    """

    height: int = Field(gt=0, description="Height in pixels.")
    width: int = Field(gt=0, description="Width in pixels.")
    resize: Literal["stretch", "crop", "pad"] = Field(description="How pictures of another shape are fitted.")
    share: float = Field(default=1.0, gt=0, le=1, description="Share of the sides that `crop` takes.")
    interpolation: Literal["bilinear-antialiased"] = Field(
        default="bilinear-antialiased",
        description="The only value; manifests state it for implementations in other languages.",
    )


@dataclass(frozen=True)
class Geometry:
    """The mapping from the model's pixels to the sender's upright picture: `x = scale_x · model_x + offset_x`, and the
    same for y.

    Coordinates are continuous; pixel `i` covers `i` to `i + 1`.
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
        """Return the box of a cell of a `rows` × `columns` feature map in the sender's pixels: left, top, right,
        bottom.

        Right and bottom are exclusive. The box is the cell's share of the input, not its receptive field, which is
        larger. With `smoothing` (odd, in cells) it covers the square of cells around the cell. It is clipped to the
        picture and at least one pixel wide and high; a cell that is entirely padding gets the nearest pixels of the
        picture. Raises ValueError for a cell outside the map.

        >>> Geometry(400, 200, 100, 100, 4.0, 2.0, 0.0, 0.0).cell_box(5, rows=2, columns=4)
        (100, 100, 200, 200)
        """
        if not 0 <= cell < rows * columns:
            raise ValueError(f"cell {cell} is outside a feature map of {rows} × {columns} cells")
        row, column = divmod(cell, columns)
        cell_width = self.scale_x * self.model_width / columns
        cell_height = self.scale_y * self.model_height / rows
        reach = smoothing // 2
        first_column, last_column = max(0, column - reach), min(columns, column + reach + 1)
        first_row, last_row = max(0, row - reach), min(rows, row + reach + 1)
        left, right = _pixels(self.offset_x, cell_width, first_column, last_column, self.picture_width)
        top, bottom = _pixels(self.offset_y, cell_height, first_row, last_row, self.picture_height)
        return left, top, right, bottom


@dataclass(frozen=True)
class Placement:
    """The effect of a rule on pictures of one size.

    `region` of the sender's picture is resized to `size` (width, height) and placed at `origin` (left, top) of the
    model's input; the rest of the input is padding.
    """

    region: Region
    size: tuple[int, int]
    origin: tuple[int, int]


def placement_of(width: int, height: int, rule: InputRule) -> Placement:
    """Apply a rule to the size of a picture of `width` × `height` pixels; see `InputRule`.

    The region of `crop` may have fractions of a pixel. `pad` centres the picture; an odd pixel of padding goes to the
    right or bottom.

    >>> placement_of(30, 20, InputRule(height=64, width=64, resize="crop")).region
    (5.0, 0.0, 25.0, 20.0)
    """
    size = (rule.width, rule.height)
    region = (0.0, 0.0, float(width), float(height))
    origin = (0, 0)
    wider = width * rule.height >= height * rule.width
    if rule.resize == "crop" and wider:
        largest_width = min(height * rule.width / rule.height, float(width))
        region = _centred(width, height, largest_width * rule.share, height * rule.share)
    elif rule.resize == "crop":
        largest_height = min(width * rule.height / rule.width, float(height))
        region = _centred(width, height, width * rule.share, largest_height * rule.share)
    elif rule.resize == "pad":
        if wider:
            size = (rule.width, _rounded_quotient(height * rule.width, width))
        else:
            size = (_rounded_quotient(width * rule.height, height), rule.height)
        origin = ((rule.width - size[0]) // 2, (rule.height - size[1]) // 2)
    return Placement(region, size, origin)


def geometry_of(width: int, height: int, rule: InputRule) -> Geometry:
    """Return the geometry of a picture of `width` × `height` pixels under a rule.

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


def _centred(width: int, height: int, region_width: float, region_height: float) -> Region:
    return (
        (width - region_width) / 2,
        (height - region_height) / 2,
        (width + region_width) / 2,
        (height + region_height) / 2,
    )


def _rounded_quotient(numerator: int, denominator: int) -> int:
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def _pixels(offset: float, step: float, start: int, end: int, limit: int) -> tuple[int, int]:
    # Both ends are rounded in the same way, so that neighbouring boxes touch without overlap.
    first = min(max(math.floor(offset + step * start + 0.5), 0), limit - 1)
    last = min(math.floor(offset + step * end + 0.5), limit)
    return first, max(last, first + 1)
