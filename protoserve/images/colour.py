"""Colour profiles: brings the colours of wide-gamut pictures (Display P3, Adobe RGB, …) to sRGB."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

# Profiles of a matrix and three curves are at most some kilobytes long.
_MAX_BYTES: Final = 65_536
_MATRIX_TAGS: Final = frozenset({b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"})
# Variants of sRGB differ in rounding only.
_SAME_WITHIN: Final = 3
# Several threads share a transformation, so it must not keep the last pixel.
_NO_CACHE: Final = 0x0040


def wide_gamut(profile: bytes | None) -> bytes | None:
    """Return a profile that `to_srgb` has to apply, None for any other.

    Applied are RGB profiles of a matrix and curves, as cameras, phones and editors embed them. sRGB changes nothing,
    and profiles with tables, for grey or for CMYK are ignored, as is a damaged one.
    """
    return profile if profile is not None and _transformation(bytes(profile)) is not None else None


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Convert an RGB picture from the colours of `profile` (from `wide_gamut`) to sRGB, relative to white."""
    transformation = _transformation(bytes(profile))
    return picture if transformation is None else transformation.apply(picture)


@lru_cache(maxsize=32)
def _transformation(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    if len(profile) > _MAX_BYTES or not _is_matrix(profile):
        return None
    try:
        found = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags(_NO_CACHE),
        )
        cube = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), axis=-1).reshape(36, 6, 3)
        converted = np.asarray(found.apply(Image.fromarray(cube)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return found if np.abs(converted.astype(int) - cube).max() > _SAME_WITHIN else None


def _is_matrix(profile: bytes) -> bool:
    """Return whether it is an RGB profile of a matrix and curves, and of no table."""
    if profile[16:20] != b"RGB " or profile[36:40] != b"acsp" or len(profile) < 132:
        return False
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 100 or len(profile) < 132 + 12 * count:
        return False
    tags = {profile[start : start + 4] for start in range(132, 132 + 12 * count, 12)}
    return tags >= _MATRIX_TAGS and b"A2B0" not in tags
