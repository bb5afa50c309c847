"""The rule for resizing pictures to model size, and the mapping from model pixels to the sender's picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from protoserve.errors import InputError
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
class Cells:
    """The cells of a feature map of `rows` × `columns`, and the part of the model's input that each stands for.

    A cell stands for its share of the input or, with `smoothing` (odd, in cells), for the square of cells around it.
    With `tile` (pixels), it is computed from one square of the input alone. The first square starts at pixel `start`,
    which may lie outside the input, and the next ones every `step` pixels.
    Without tiles, `reach` is how many of the model's pixels above and below, and left and right of a cell's centre hold
    most of its gradient; None where it was not measured.
    """

    rows: int
    columns: int
    smoothing: int = 1
    tile: int | None = None
    step: int | None = None
    reach: tuple[int, int] | None = None
    start: int = 0


def tile_grid(height: int, width: int, tile: int, step: int) -> tuple[int, int]:
    """Return how many rows and columns of tiles of `tile` pixels, one every `step` pixels, cover `height` × `width`
    pixels exactly.

    Raises InputError if pixels are left over at an edge or between tiles, with the nearest values that fit.

    >>> tile_grid(224, 224, tile=112, step=56)
    (3, 3)
    """
    if not _covers(height, width, tile, step):
        sides = range(1, min(height, width) + 1)
        steps = {side: side if step == tile else step for side in sides}
        cures = {"tiles of {} pixels": _nearest(tile, (s for s in sides if _covers(height, width, s, steps[s])))}
        if step != tile:
            cures["a step of {}"] = _nearest(step, (other for other in sides if _covers(height, width, tile, other)))
        if step <= tile:
            fitting = (tile + step * max(0, round((side - tile) / step)) for side in (height, width))
            cures["pictures of {} pixels"] = " × ".join(map(str, fitting))
        raise InputError(
            f"tiles of {tile} pixels, one every {step}, do not cover pictures of {height} × {width} pixels exactly; "
            f"use {', or '.join(cure.format(value) for cure, value in cures.items() if value)}"
        )
    return (height - tile) // step + 1, (width - tile) // step + 1


def _covers(height: int, width: int, tile: int, step: int) -> bool:
    return step <= tile <= min(height, width) and (height - tile) % step == 0 and (width - tile) % step == 0


def _nearest(wanted: int, values: Iterable[int]) -> str:
    """Name the nearest of the `values` below and above `wanted`, "" if there is none."""
    known = sorted(values)
    nearest = [*[value for value in known if value < wanted][-1:], *[value for value in known if value >= wanted][:1]]
    return " or ".join(map(str, nearest))


@dataclass(frozen=True)
class Geometry:
    """The mapping from the model's pixels to the sender's upright picture: `x = scale_x · model_x + offset_x`, and the
    same for y.

    Coordinates are continuous; pixel `i` covers `i` to `i + 1`. The picture was decoded at 1/`reduced` of its size.
    """

    picture_width: int
    picture_height: int
    model_width: int
    model_height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    reduced: int = 1

    def cell_box(self, cell: int, cells: Cells) -> Box:
        """Return the box of a cell in the sender's pixels: left, top, right, bottom.

        Right and bottom are exclusive. Without tiles, the box is the part of the input that the cell stands for (see
        `Cells`), not its receptive field, which is larger. With tiles, the box holds every pixel that the resize filter
        reads for the cell's tile: no other pixel of the decoded picture can change the cell.

        The box is clipped to the picture and at least one pixel wide and high; a cell that is entirely padding gets the
        nearest pixels of the picture. Raises ValueError for a cell outside the map.

        >>> picture = Geometry(400, 200, 100, 100, 4.0, 2.0, 0.0, 0.0)
        >>> picture.cell_box(5, Cells(rows=2, columns=4))
        (100, 100, 200, 200)
        >>> picture.cell_box(4, Cells(rows=3, columns=3, tile=50, step=25))
        (98, 49, 302, 151)
        """
        rows, columns = cells.rows, cells.columns
        if not 0 <= cell < rows * columns:
            raise ValueError(f"cell {cell} is outside a feature map of {rows} × {columns} cells")
        row, column = divmod(cell, columns)
        if cells.tile is not None:
            tile, step = cells.tile, cells.step or cells.tile
            first, count = _inside(cells.start + column * step, tile, self.model_width)
            left, right = self._filtered(self.offset_x, self.scale_x, first, count, self.picture_width)
            first, count = _inside(cells.start + row * step, tile, self.model_height)
            top, bottom = self._filtered(self.offset_y, self.scale_y, first, count, self.picture_height)
            return left, top, right, bottom
        cell_width = self.scale_x * self.model_width / columns
        cell_height = self.scale_y * self.model_height / rows
        reach = cells.smoothing // 2
        first_column, last_column = max(0, column - reach), min(columns, column + reach + 1)
        first_row, last_row = max(0, row - reach), min(rows, row + reach + 1)
        left, right = _pixels(self.offset_x, cell_width, first_column, last_column, self.picture_width)
        top, bottom = _pixels(self.offset_y, cell_height, first_row, last_row, self.picture_height)
        return left, top, right, bottom

    def seen_box(self, cell: int, cells: Cells) -> Box | None:
        """Return the region around a cell's centre that holds most of its gradient, in the sender's pixels: left, top,
        right, bottom, clipped to the picture. None with tiles, whose box is exact, and where it was not measured.

        >>> picture = Geometry(400, 200, 100, 100, 4.0, 2.0, 0.0, 0.0)
        >>> picture.seen_box(5, Cells(rows=2, columns=4, reach=(40, 20)))
        (70, 70, 230, 200)
        """
        if cells.tile is not None or cells.reach is None:
            return None
        row, column = divmod(cell, cells.columns)
        down, across = cells.reach
        x, y = (column + 0.5) * self.model_width / cells.columns, (row + 0.5) * self.model_height / cells.rows
        left, right = _pixels(
            self.offset_x + self.scale_x * (x - across), 2 * self.scale_x * across, 0, 1, self.picture_width
        )
        top, bottom = _pixels(
            self.offset_y + self.scale_y * (y - down), 2 * self.scale_y * down, 0, 1, self.picture_height
        )
        return left, top, right, bottom

    def _filtered(self, offset: float, scale: float, first: int, count: int, limit: int) -> tuple[int, int]:
        """Return the start and the end of the sender's pixels that the resize filter reads along one axis for `count`
        pixels of the model from `first` on.

        Pillow's bilinear filter is a triangle. It reads the decoded pixels whose centres are less than max(scale, 1)
        decoded pixels from the centre of the model's pixel (`precompute_coeffs` in Pillow's Resample.c).
        """
        decoded = -(-limit // self.reduced)
        scale, offset = scale / self.reduced, offset / self.reduced
        support = max(scale, 1.0)
        # Pillow holds the region in float32. This is exact for small binary fractions, as those of a whole picture that
        # is halved or not resized at all; otherwise its error is below 1e-6 of the side.
        exact = (256 * scale).is_integer() and (256 * offset).is_integer()
        slack = 0.0 if exact else 1e-6 * decoded
        start = math.floor(offset + scale * (first + 0.5) - support + 0.5 - slack)
        end = math.ceil(offset + scale * (first + count - 0.5) + support - 0.5 + slack)
        start = min(max(start, 0), decoded - 1)
        end = max(min(end, decoded), start + 1)
        return start * self.reduced, min(end * self.reduced, limit)


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


def geometry_of(width: int, height: int, rule: InputRule, reduced: int = 1) -> Geometry:
    """Return the geometry under a rule of a picture of `width` × `height` pixels, decoded at 1/`reduced` of its size.

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
        reduced=reduced,
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


def _inside(first: int, count: int, limit: int) -> tuple[int, int]:
    """Return the first and the number of those of `count` pixels from `first` on that lie in 0 to `limit`."""
    start, end = max(first, 0), min(first + count, limit)
    return start, end - start


def _pixels(offset: float, step: float, start: int, end: int, limit: int) -> tuple[int, int]:
    # Both ends are rounded in the same way, so that neighbouring boxes touch without overlap.
    first = min(max(math.floor(offset + step * start + 0.5), 0), limit - 1)
    last = min(math.floor(offset + step * end + 0.5), limit)
    return first, max(last, first + 1)
