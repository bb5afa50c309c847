"""Untrusted bytes → RGB uint8 at model size, and the geometry that maps a cell back to the sender's pixels.

Training, export and serving read every picture through `decode` and `fit`, so a network meets the same pixels
everywhere.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoserve.bundle.folder import InputRule
from protoserve.errors import ImageError, InputError

ImageSource: TypeAlias = bytes | bytearray | memoryview | str | Path | Image.Image | NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
PAD_COLOUR: Final = (124, 116, 104)

# Enough to tell a damaged picture from something that never was one.
_SIGNATURES: Final[Mapping[str, tuple[bytes, ...]]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF8",),
}
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's parsers raise on hostile input; its documentation names only the first few.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    Image.DecompressionBombWarning,
)
# Pillow warns of odd metadata in pictures that it reads well. A server can do nothing about a sender's
# metadata, and `warnings.catch_warnings` is not safe with threads, so these (and only these) are off for
# good.
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True)
class Limits:
    """What a picture may measure: its encoded size in bytes, its pixels, and either side in pixels."""

    bytes: int = 20_000_000
    pixels: int = 50_000_000
    side: int = 20_000


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class DecodedImage:
    """An upright 8-bit RGB picture: EXIF orientation applied, transparency laid on white.

    `full` is its width and height where it was decoded at 1/`reduced` of them, None where it was not reduced.
    """

    picture: Image.Image
    reduced: int = 1
    full: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        """Pixels of the sender's picture from left to right."""
        return self.picture.width if self.full is None else self.full[0]

    @property
    def height(self) -> int:
        """Pixels of the sender's picture from top to bottom."""
        return self.picture.height if self.full is None else self.full[1]


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
class FittedImage:
    """A picture at model size, uint8 RGB [height, width, 3], and the way back to the sender's pixels."""

    array: NDArray[np.uint8]
    geometry: Geometry


def decode(
    source: ImageSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    formats: tuple[str, ...] = FORMATS,
    draft_for: InputRule | None = None,
) -> DecodedImage:
    """Read a picture: a path, encoded bytes, a Pillow image or a uint8 array [H, W, 3] (RGB), [H, W] (grey).

    The format is found from the content, never from a name: JPEG, PNG, WebP, BMP, TIFF or GIF; of several
    frames the first counts; `formats` narrows the choice. All EXIF orientations are applied; alpha and transparent
    colours are laid on white; 16-bit grey is scaled to 8 bits; colour profiles are not applied. Sizes are checked on
    the header, before anything is decoded.

    With `draft_for`, an encoded JPEG that this rule would shrink at least fourfold is decoded at a half, a quarter or
    an eighth of its sides, so that at least two of its pixels are left for each of the model's: much quicker, and the
    pixels differ a little from those of a whole decoding.

    Raises InputError for a path that is no readable file, and ImageError with the code `unsupported_image`
    (not a picture, or of a kind that has no clear 8-bit form), `broken_image` (damaged or truncated) or
    `image_too_large`.

    >>> decode(np.zeros((20, 30, 3), dtype=np.uint8)).width
    30
    """
    if isinstance(source, str | Path):
        return _decode_file(Path(source), limits, formats, draft_for)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_bytes(bytes(source), limits, "the image", formats, draft_for)
    if isinstance(source, np.ndarray):
        return DecodedImage(_from_array(source, limits))
    if isinstance(source, Image.Image):
        _check_size(source.size, limits, "the image")
        return _upright_rgb(source, limits, "the image")
    raise ImageError(
        f"{type(source).__name__} is no picture; give a path, bytes, a Pillow image or a uint8 array",
        "unsupported_image",
    )


def fit(image: DecodedImage, rule: InputRule) -> FittedImage:
    """Resize to `rule.width` × `rule.height` with Pillow's antialiased bilinear filter.

    `stretch` takes the whole picture; `crop` the largest centred part of the model's shape, or `rule.share` of
    its sides (to a fraction of a pixel); `pad` scales the whole picture to fit and centres it on grey
    (124, 116, 104), an odd pixel going to the right or bottom.

    >>> square = InputRule(height=64, width=64, resize="crop")
    >>> fit(decode(np.zeros((20, 30, 3), dtype=np.uint8)), square).geometry.offset_x
    5.0
    """
    width, height = image.width, image.height
    size = (rule.width, rule.height)
    box = (0.0, 0.0, float(width), float(height))
    origin = (0, 0)
    wider = width * rule.height >= height * rule.width
    if rule.resize == "crop" and wider:
        part = min(height * rule.width / rule.height, float(width))
        box = _centred(width, height, part * rule.share, height * rule.share)
    elif rule.resize == "crop":
        part = min(width * rule.height / rule.width, float(height))
        box = _centred(width, height, width * rule.share, part * rule.share)
    elif rule.resize == "pad":
        if wider:
            size = (rule.width, _rounded_quotient(height * rule.width, width))
        else:
            size = (_rounded_quotient(width * rule.height, height), rule.height)
        origin = ((rule.width - size[0]) // 2, (rule.height - size[1]) // 2)
    # Without a reducing gap the filter reads every source pixel, so the map below is exact. At the edges of a
    # crop it also sees the pixels just beyond the box.
    drawn = (
        box[0] / image.reduced,
        box[1] / image.reduced,
        min(box[2] / image.reduced, image.picture.width),
        min(box[3] / image.reduced, image.picture.height),
    )
    resized = image.picture.resize(size, Image.Resampling.BILINEAR, box=drawn, reducing_gap=None)
    array = np.empty((rule.height, rule.width, 3), dtype=np.uint8)
    if size != (rule.width, rule.height):
        array[:] = PAD_COLOUR
    array[origin[1] : origin[1] + size[1], origin[0] : origin[0] + size[0]] = np.asarray(resized)
    scale_x = (box[2] - box[0]) / size[0]
    scale_y = (box[3] - box[1]) / size[1]
    geometry = Geometry(
        picture_width=width,
        picture_height=height,
        model_width=rule.width,
        model_height=rule.height,
        scale_x=scale_x,
        scale_y=scale_y,
        offset_x=box[0] - scale_x * origin[0],
        offset_y=box[1] - scale_y * origin[1],
    )
    return FittedImage(array, geometry)


def _centred(width: int, height: int, across: float, down: float) -> tuple[float, float, float, float]:
    return (width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2


def _rounded_quotient(numerator: int, denominator: int) -> int:
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def _pixels(offset: float, step: float, start: int, end: int, limit: int) -> tuple[int, int]:
    # Rounding both ends alike makes neighbouring boxes touch without overlap.
    first = min(max(math.floor(offset + step * start + 0.5), 0), limit - 1)
    last = min(math.floor(offset + step * end + 0.5), limit)
    return first, max(last, first + 1)


def _decode_file(path: Path, limits: Limits, formats: tuple[str, ...], draft_for: InputRule | None) -> DecodedImage:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file")
    try:
        with path.open("rb") as stream:
            # One byte more than allowed shows that a file (or a pipe) is too large without reading all of it.
            data = stream.read(limits.bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r}: can't read the image ({error})") from error
    return _decode_bytes(data, limits, str(path), formats, draft_for)


def _decode_bytes(
    data: bytes, limits: Limits, name: str, formats: tuple[str, ...], draft_for: InputRule | None
) -> DecodedImage:
    if not data:
        raise ImageError(f"{name} is empty; give a picture as {_listed(formats)}", "unsupported_image")
    if len(data) > limits.bytes:
        raise ImageError(
            f"{name} has more than the {limits.bytes:,} bytes allowed; send a smaller one", "image_too_large"
        )
    _silence_pillow_warnings()
    try:
        picture = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels ({error}); send a smaller one", "image_too_large") from error
    except _PILLOW_ERRORS as error:
        if _looks_like(data, formats):
            raise ImageError(f"{name} is damaged or truncated; send it again", "broken_image") from error
        raise ImageError(f"{name} is no picture as {_listed(formats)}; convert it", "unsupported_image") from error
    with picture:
        _check_size(picture.size, limits, name)
        full = picture.size
        reduced = 1 if draft_for is None or picture.format != "JPEG" else _reduction(full, draft_for)
        if reduced == 1:
            return _upright_rgb(picture, limits, name)
        picture.draft(None, (full[0] // reduced, full[1] // reduced))
        upright = _upright_rgb(picture, limits, name).picture
        # The decoder rounds sides up; a picture that was turned has its sides exchanged.
        drawn = (-(-full[0] // reduced), -(-full[1] // reduced))
        return DecodedImage(upright, reduced, full if upright.size == drawn else full[::-1])


def _reduction(size: tuple[int, int], rule: InputRule) -> int:
    """8, 4, 2 or 1: how far a JPEG may be reduced while decoding, with two pixels left for each of the model's."""
    # Whether the picture will be turned is not known yet, so it is for the worse of both.
    shrinking = rule.share * min(size) / max(rule.width, rule.height)
    return next((factor for factor in (8, 4, 2) if shrinking >= 2 * factor), 1)


def _looks_like(data: bytes, formats: tuple[str, ...]) -> bool:
    """Whether the data begin as one of the formats does."""
    found = [name for name in formats if data.startswith(_SIGNATURES[name])]
    return bool(found) and (found != ["WEBP"] or data[8:12] == b"WEBP")


def _listed(formats: tuple[str, ...]) -> str:
    *others, last = ("WebP" if name == "WEBP" else name for name in formats)
    return f"{', '.join(others)} or {last}" if others else last


def _upright_rgb(picture: Image.Image, limits: Limits, name: str) -> DecodedImage:
    _silence_pillow_warnings()
    try:
        picture.load()
        # Some formats learn their true size only now.
        _check_size(picture.size, limits, name)
        # Read after loading, for Pillow turns a TIFF itself and then drops its orientation.
        turn = _UPRIGHT.get(_orientation(picture))
        upright = _rgb(picture, name)
        return DecodedImage(upright.transpose(turn) if turn is not None else upright)
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{name} is damaged or truncated ({error}); send it again", "broken_image") from error


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    except _PILLOW_ERRORS:
        # The picture itself is whole; metadata that can't be read turns nothing, as in browsers.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return _eight_bits(picture).convert("RGB")
    if picture.mode not in _EIGHT_BIT_MODES:
        raise ImageError(
            f"{name} has samples of mode {picture.mode!r}, whose range is unknown; save it with 8 or 16 bits",
            "unsupported_image",
        )
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    wide = np.asarray(picture).astype(np.uint32)
    grey = ((wide + 128) // 257).astype(np.uint8)
    if (transparent := picture.info.get("transparency")) is not None:
        grey[wide == transparent] = 255
    return Image.fromarray(grey)


def _from_array(array: NDArray[np.uint8], limits: Limits) -> Image.Image:
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not is_picture or array.size == 0:
        raise ImageError(
            f"an array {array.dtype} {list(array.shape)} is no picture; give uint8 [height, width, 3] "
            "or [height, width]",
            "unsupported_image",
        )
    _check_size((array.shape[1], array.shape[0]), limits, "the image")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _check_size(size: tuple[int, int], limits: Limits, name: str) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(f"{name} has no pixels ({width} × {height}); send it again", "broken_image")
    if max(size) > limits.side or width * height > limits.pixels:
        raise ImageError(
            f"{name} has {width} × {height} pixels; at most {limits.side:,} a side and {limits.pixels:,} "
            "in all are allowed, so send a smaller one",
            "image_too_large",
        )


def _silence_pillow_warnings() -> None:
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
