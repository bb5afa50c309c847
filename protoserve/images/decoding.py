"""Decodes untrusted bytes to an upright 8-bit RGB picture.

Training, export and serving read every picture with `decode`, so a network gets the same pixels everywhere.
"""

from __future__ import annotations

import io
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
from PIL import ExifTags, Image

from protoserve.errors import ImageError, InputError
from protoserve.images.geometry import InputRule

ImageSource: TypeAlias = bytes | bytearray | memoryview | str | Path | Image.Image | NDArray[np.uint8]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# The suffixes of picture files; `decode` itself looks only at the content.
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

# The first bytes of each format, to distinguish a damaged picture from other content.
_SIGNATURES: Final[Mapping[str, tuple[bytes, ...]]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF8",),
}
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
# Pillow's `exif_transpose` also rewrites all metadata, so it fails on a picture with a single malformed tag.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's parsers raise all of these on malformed input; its documentation names only the first few.
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
# Pillow warns about unusual metadata in pictures that it reads correctly. A server can't change a sender's metadata,
# and `warnings.catch_warnings` is not thread-safe, so Pillow's warnings are off for the whole process.
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True)
class Limits:
    """The largest picture allowed: its encoded bytes, its number of pixels, and its longer side in pixels."""

    bytes: int = 20_000_000
    pixels: int = 50_000_000
    side: int = 20_000


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class DecodedImage:
    """An upright 8-bit RGB picture: EXIF orientation applied, transparency blended with white.

    If it was decoded at 1/`reduced` of its size, `full` is its original width and height; otherwise `full` is None.
    """

    picture: Image.Image
    reduced: int = 1
    full: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        """The width of the sender's picture in pixels."""
        return self.picture.width if self.full is None else self.full[0]

    @property
    def height(self) -> int:
        """The height of the sender's picture in pixels."""
        return self.picture.height if self.full is None else self.full[1]


def decode(
    source: ImageSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    formats: tuple[str, ...] = FORMATS,
    draft_for: InputRule | None = None,
) -> DecodedImage:
    """Decode a picture: a path, encoded bytes, a Pillow image, or a uint8 array [H, W, 3] (RGB) or [H, W] (grey).

    The format is detected from the content, never from a name: JPEG, PNG, WebP, BMP, TIFF or GIF; `formats` restricts
    the choice. Only the first frame is read. EXIF orientation is applied, transparency is blended with white, 16-bit
    grey is scaled to 8 bits, and colour profiles are ignored. The `limits` are checked on the header, before any pixel
    is decoded.

    With `draft_for`, an encoded JPEG that this rule would shrink by a factor of 4 or more is decoded at a half, a
    quarter or an eighth of its size, with at least two pixels per pixel of the model's input. That is much faster, and
    the pixels differ slightly from those of a full decoding.

    Raises InputError for a path that is not a readable file, and ImageError with the code `unsupported_image`
    (not a picture, or a kind without a defined 8-bit form), `broken_image` (damaged or truncated) or
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
        f"{type(source).__name__} is not a picture; give a path, bytes, a Pillow image or a uint8 array",
        "unsupported_image",
    )


def _decode_file(path: Path, limits: Limits, formats: tuple[str, ...], draft_for: InputRule | None) -> DecodedImage:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file")
    try:
        with path.open("rb") as stream:
            # Reading one byte more than allowed reveals a file (or a pipe) that is too large without reading all of it.
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
        raise ImageError(f"{name} is not a picture as {_listed(formats)}; convert it", "unsupported_image") from error
    with picture:
        _check_size(picture.size, limits, name)
        full = picture.size
        reduced = 1 if draft_for is None or picture.format != "JPEG" else _reduction(full, draft_for)
        if reduced == 1:
            return _upright_rgb(picture, limits, name)
        picture.draft(None, (full[0] // reduced, full[1] // reduced))
        upright = _upright_rgb(picture, limits, name).picture
        # The decoder rounds sides up. If the picture was rotated by 90°, its sides are swapped.
        decoded = (-(-full[0] // reduced), -(-full[1] // reduced))
        return DecodedImage(upright, reduced, full if upright.size == decoded else full[::-1])


def _reduction(size: tuple[int, int], rule: InputRule) -> int:
    """Return the factor, 8, 4, 2 or 1, by which a JPEG may be reduced while decoding; see `draft_for` of `decode`."""
    # The picture may still be rotated, so this assumes the worse orientation.
    shrinkage = rule.share * min(size) / max(rule.width, rule.height)
    return next((factor for factor in (8, 4, 2) if shrinkage >= 2 * factor), 1)


def _looks_like(data: bytes, formats: tuple[str, ...]) -> bool:
    """Return whether the data starts with the signature of one of the formats."""
    matching = [name for name in formats if data.startswith(_SIGNATURES[name])]
    return bool(matching) and (matching != ["WEBP"] or data[8:12] == b"WEBP")


def _listed(formats: tuple[str, ...]) -> str:
    *others, last = ("WebP" if name == "WEBP" else name for name in formats)
    return f"{', '.join(others)} or {last}" if others else last


def _upright_rgb(picture: Image.Image, limits: Limits, name: str) -> DecodedImage:
    _silence_pillow_warnings()
    try:
        picture.load()
        # The size of some formats is known only after loading.
        _check_size(picture.size, limits, name)
        # Read after loading, because Pillow rotates a TIFF itself and then removes its orientation.
        transposition = _UPRIGHT.get(_orientation(picture))
        rgb = _rgb(picture, name)
        return DecodedImage(rgb.transpose(transposition) if transposition is not None else rgb)
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{name} is damaged or truncated ({error}); send it again", "broken_image") from error


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except _PILLOW_ERRORS:
        # The picture itself is intact. Like browsers, ignore metadata that can't be read.
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
            f"an array {array.dtype} {list(array.shape)} is not a picture; give uint8 [height, width, 3] "
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
