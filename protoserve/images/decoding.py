"""Decodes untrusted bytes to an upright 8-bit RGB picture.

Training, export and serving read every picture with `decode`, so a network gets the same pixels everywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from protoserve.errors import ImageError, InputError, OutOfMemoryError
from protoserve.images.colour import wide_gamut
from protoserve.images.decoded import EIGHT_BIT_MODES, UPRIGHT, DecodedImage, white_of
from protoserve.images.formats import readable_formats
from protoserve.images.geometry import InputRule
from protoserve.images.headers import Header, read_header
from protoserve.images.signatures import description, format_of, listed

ImageSource: TypeAlias = bytes | bytearray | memoryview | str | Path | Image.Image | NDArray[np.uint8]

# A JPEG with more pixels is decoded at a half, a quarter or an eighth of its size, which is then below this.
FULL_JPEG_PIXELS: Final = 50_000_000
# Memory beside the decoded picture: strips of it, the picture at model size, the library's buffers.
_WORKING_MEMORY: Final = 14_000_000
_WORKING_BYTES_PER_PIXEL: Final = 20

_PLUGINS: Final[Mapping[str, tuple[str, str]]] = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
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
    Image.DecompressionBombWarning,
)
# Pillow warns about unusual metadata in pictures that it reads correctly. A server can't change a sender's metadata,
# and `warnings.catch_warnings` is not thread-safe, so Pillow's warnings are off for the whole process.
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True)
class Limits:
    """The largest picture allowed: its encoded bytes, its number of pixels, and its longer side in pixels.

    The defaults are for data of one's own; the service sets narrower ones for what strangers send.
    """

    bytes: int = 2_000_000_000
    pixels: int = 1_000_000_000
    side: int = 200_000


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class DecodingCost:
    """Upper bounds for decoding a picture and resizing it to model size: bytes of memory and seconds of one core.

    `bounded` is False where a format's decoder has limits that we don't know.
    """

    memory: int
    seconds: float
    bounded: bool


def decode(
    source: ImageSource,
    *,
    limits: Limits = DEFAULT_LIMITS,
    formats: tuple[str, ...] | None = None,
    draft_for: InputRule | None = None,
) -> DecodedImage:
    """Decode a picture: a path, encoded bytes, a Pillow image, or a uint8 array [H, W, 3] (RGB) or [H, W] (grey).

    The format is detected from the content, never from a name: one of `formats`, by default all that this installation
    reads. Only the first frame is read. EXIF orientation is applied (that of XMP is not, as in browsers), and
    transparency is blended with white. 16-bit grey is scaled to 8 bits, from 12 or 8 bits where the file says so or
    holds no larger value. RGB profiles of a matrix and curves are converted to sRGB, others are ignored. The `limits`
    are checked on the header, before any pixel is decoded.

    A JPEG of more than `FULL_JPEG_PIXELS` is decoded at a half, a quarter or an eighth of its size. With `draft_for`,
    so is one that this rule would shrink by a factor of 4 or more, with at least two pixels per pixel of the model's
    input. That is much faster, and the pixels differ slightly from those of a full decoding.

    Raises InputError for a path that is not a readable file, OutOfMemoryError if this machine has too little memory,
    and ImageError with the code `unsupported_image` (not a picture, or a kind without a defined 8-bit form),
    `broken_image` (damaged or truncated) or `image_too_large`.

    >>> decode(np.zeros((20, 30, 3), dtype=np.uint8)).width
    30
    """
    formats = readable_formats() if formats is None else formats
    if isinstance(source, str | Path):
        path = Path(source)
        return _decode_file(_content(path, limits), limits, str(path), formats, draft_for)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_file(bytes(source), limits, "the image", formats, draft_for)
    if isinstance(source, np.ndarray):
        return DecodedImage(_from_array(source, limits))
    if isinstance(source, Image.Image):
        _check_size(source.size, limits, "the image")
        return _loaded(source, None, limits, "the image")
    raise ImageError(
        f"{type(source).__name__} is not a picture; give a path, bytes, a Pillow image or a uint8 array",
        "unsupported_image",
    )


def decoding_cost(
    data: bytes,
    *,
    limits: Limits = DEFAULT_LIMITS,
    formats: tuple[str, ...] | None = None,
    draft_for: InputRule | None = None,
) -> DecodingCost:
    """Return what `decode` and `fitting.fit` take for encoded bytes, from the headers alone.

    Raises ImageError as `decode` does for whatever the headers tell.
    """
    header = _examined(data, limits, "the image", readable_formats() if formats is None else formats)
    reduced = _reduction(header, draft_for)
    memory = (header.memory - header.fixed) // reduced**2 + header.fixed
    working = min(_WORKING_MEMORY, 2_000_000 + _WORKING_BYTES_PER_PIXEL * header.pixels)
    return DecodingCost(memory + len(data) + working, header.seconds, header.bounded)


def _content(path: Path, limits: Limits) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file")
    try:
        with path.open("rb") as stream:
            # Reading one byte more than allowed reveals a file (or a pipe) that is too large without reading all of it.
            return stream.read(limits.bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r}: can't read the image ({error})") from error


def _examined(data: bytes, limits: Limits, name: str, formats: tuple[str, ...]) -> Header:
    """Check all that can be checked without decoding, and return the header."""
    if not data:
        raise ImageError(f"{name} is empty; give a picture as {listed(formats)}", "unsupported_image")
    if len(data) > limits.bytes:
        raise ImageError(
            f"{name} has more than the {limits.bytes:,} bytes allowed; send a smaller one", "image_too_large"
        )
    kind = format_of(data)
    if kind is None or kind not in formats:
        raise _unsupported(data, name, formats)
    header = read_header(data, kind, name)
    _check_size((header.width, header.height), limits, name)
    return header


def _unsupported(data: bytes, name: str, formats: tuple[str, ...]) -> ImageError:
    known = description(data)
    if known is None:
        return ImageError(f"{name} is not a picture as {listed(formats)}; convert it", "unsupported_image")
    what, cure = known
    return ImageError(f"{name} is {what}, not a picture as {listed(formats)}; {cure}", "unsupported_image")


def _decode_file(
    data: bytes, limits: Limits, name: str, formats: tuple[str, ...], draft_for: InputRule | None
) -> DecodedImage:
    header = _examined(data, limits, name, formats)
    decoded = _decode_bytes(data, header, limits, name, draft_for)
    drafted = _reduction(header, draft_for) != _reduction(header, None)
    return replace(decoded, sha256=hashlib.sha256(data).hexdigest(), drafted=drafted)


def _decode_bytes(data: bytes, header: Header, limits: Limits, name: str, draft_for: InputRule | None) -> DecodedImage:
    _silence_pillow_warnings()
    module, plugin = _PLUGINS[header.format]
    try:
        # Not `Image.open`: it would try every plugin, treat some JPEGs as another format, and apply a limit of its own.
        picture: Image.Image = getattr(importlib.import_module(module), plugin)(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels ({error}); send a smaller one", "image_too_large") from error
    except MemoryError as error:
        raise _out_of_memory(name) from error
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{name} is damaged or truncated; send it again", "broken_image") from error
    _check_size(picture.size, limits, name)
    if picture.width * picture.height > header.pixels:
        raise ImageError(f"{name} states several sizes; send it again", "broken_image")
    full, reduced = picture.size, _reduction(header, draft_for)
    if reduced == 1:
        return _loaded(picture, header, limits, name)
    picture.draft(None, (full[0] // reduced, full[1] // reduced))
    decoded = _loaded(picture, header, limits, name)
    upright = full[::-1] if decoded.orientation >= 5 else full
    return DecodedImage(decoded.stored, reduced, upright, decoded.orientation, decoded.white, decoded.profile)


def _reduction(header: Header, rule: InputRule | None) -> int:
    """Return the factor, 8, 4, 2 or 1, by which a picture is reduced while decoding; see `decode`."""
    if header.format != "JPEG":
        return 1
    needed = next((factor for factor in (1, 2, 4) if header.pixels <= FULL_JPEG_PIXELS * factor**2), 8)
    if rule is None:
        return needed
    # The picture may still be rotated, so this assumes the worse orientation.
    shrinkage = rule.share * min(header.width, header.height) / max(rule.width, rule.height)
    return max(needed, next((factor for factor in (8, 4, 2) if shrinkage >= 2 * factor), 1))


def _loaded(picture: Image.Image, header: Header | None, limits: Limits, name: str) -> DecodedImage:
    """Decode the pixels of a picture; `header` is that of its file, None for a Pillow image of the caller's."""
    _silence_pillow_warnings()
    try:
        picture.load()
        # The size of some formats is known only after loading.
        _check_size(picture.size, limits, name)
        # Read after loading, because Pillow rotates a TIFF itself and then removes its orientation.
        orientation = _orientation(picture) if header is None or not header.bounded else header.orientation
        if header is not None:
            # Leaves behind what only the file's decoder needs, such as the canvases of a WebP.
            picture = picture._new(picture.im)
    except MemoryError as error:
        raise _out_of_memory(name) from error
    except _PILLOW_ERRORS as error:
        if "memory" in str(error):
            raise _out_of_memory(name) from error
        raise ImageError(f"{name} is damaged or truncated ({error}); send it again", "broken_image") from error
    if picture.mode not in EIGHT_BIT_MODES and not picture.mode.startswith("I;16"):
        raise ImageError(
            f"{name} has samples of mode {picture.mode!r}, whose range is unknown; save it with 8 or 16 bits",
            "unsupported_image",
        )
    white = white_of(picture) if picture.mode.startswith("I;16") else 65_535
    profile = picture.info.get("icc_profile") if picture.mode in ("RGB", "RGBA", "RGBX", "P") else None
    return DecodedImage(
        picture,
        orientation=orientation if orientation in UPRIGHT else 1,
        white=white,
        profile=wide_gamut(profile) if isinstance(profile, bytes) else None,
    )


def _out_of_memory(name: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"{name} needs more memory to decode than is free; try again later, or free some")


def _orientation(picture: Image.Image) -> int:
    if "exif" not in picture.info and any("xmp" in str(key).lower() for key in picture.info):
        # Pillow would look for an orientation in XMP; browsers don't.
        return 1
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except _PILLOW_ERRORS:
        # The picture itself is intact. Like browsers, ignore metadata that can't be read.
        return 1
    return orientation if isinstance(orientation, int) else 1


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
