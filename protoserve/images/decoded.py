"""A decoded picture: pixels as a file stores them, made upright 8-bit RGB whole or a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from protoserve.images.colour import to_srgb

EIGHT_BIT_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
# Pillow's `exif_transpose` also rewrites all metadata, so it fails on a picture with a single malformed tag.
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture: its pixels as `stored`, in any mode with a defined 8-bit RGB form, and how to read them.

    If it was decoded at 1/`reduced` of its size, `full` is its original upright width and height; otherwise `full` is
    None. `orientation` is that of EXIF, 1 to 8; `white` the value of white in a 16-bit picture; `profile` the colour
    profile to apply, if any. `sha256` is the hash of the encoded bytes in hexadecimal, None for a picture that came as
    pixels; `drafted` tells whether `draft_for` (see `decode`) changed how it was decoded.
    """

    stored: Image.Image
    reduced: int = 1
    full: tuple[int, int] | None = None
    orientation: int = 1
    white: int = 65_535
    profile: bytes | None = None
    sha256: str | None = None
    drafted: bool = False

    @property
    def width(self) -> int:
        """The width of the sender's picture in pixels."""
        return self.decoded_size[0] if self.full is None else self.full[0]

    @property
    def height(self) -> int:
        """The height of the sender's picture in pixels."""
        return self.decoded_size[1] if self.full is None else self.full[1]

    @property
    def decoded_size(self) -> tuple[int, int]:
        """The width and the height of `picture`."""
        width, height = self.stored.size
        return (height, width) if self.orientation >= 5 else (width, height)

    @property
    def picture(self) -> Image.Image:
        """The upright 8-bit RGB picture in sRGB, transparency blended with white. Made anew on each access."""
        rgb = self.rows(0, self.decoded_size[1])
        return rgb if self.profile is None else to_srgb(rgb, self.profile)

    @property
    def is_plain(self) -> bool:
        """Whether `stored` is upright RGB without transparency already."""
        return self.orientation == 1 and self.stored.mode == "RGB" and not self.stored.has_transparency_data

    def rows(self, first: int, last: int) -> Image.Image:
        """Return the rows from `first` to `last` (exclusive) of the upright RGB picture, without the profile applied.

        Only these rows are converted, so that a large picture needs no second copy.
        """
        width, height = self.stored.size
        if self.is_plain and (first, last) == (0, height):
            return self.stored
        # The first upright row is the last stored row or column for these orientations.
        limit = height if self.orientation < 5 else width
        start, end = (limit - last, limit - first) if self.orientation in (3, 4, 7, 8) else (first, last)
        box = (0, start, width, end) if self.orientation < 5 else (start, 0, end, height)
        part = self.stored if box == (0, 0, width, height) else self.stored.crop(box)
        rgb = _rgb(part, self.white)
        transposition = UPRIGHT.get(self.orientation)
        return rgb if transposition is None else rgb.transpose(transposition)


def _rgb(picture: Image.Image, white: int) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return _eight_bits(picture, white).convert("RGB")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        backdrop = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(backdrop, colours).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def white_of(picture: Image.Image) -> int:
    """Return the value of white in a 16-bit picture: the largest of as many bits as its values need, 8, 12 or 16."""
    greatest = int(np.asarray(picture).max())
    return next(white for white in (255, 4095, 65_535) if greatest <= white)


def _eight_bits(picture: Image.Image, white: int) -> Image.Image:
    wide = np.asarray(picture).astype(np.uint32)
    grey = ((wide * 255 + white // 2) // white).astype(np.uint8)
    if (transparent := picture.info.get("transparency")) is not None:
        grey[wide == transparent] = 255
    return Image.fromarray(grey)
