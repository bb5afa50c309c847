"""Wide-gamut colours are brought to sRGB, by values worked out from the profiles' own numbers."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from protoserve.images.colour import to_srgb, wide_gamut

# The primaries of each colour space, adapted to D50, in the columns of a matrix.
DISPLAY_P3: Final = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB: Final = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB: Final = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
COLOURS: Final = ((200, 40, 60), (40, 180, 90), (60, 60, 200), (128, 128, 128), (255, 255, 255), (0, 0, 0), (255, 0, 0))


def profile(matrix: NDArray[np.float64], gamma: float = 2.2, space: bytes = b"RGB ") -> bytes:
    """An ICC profile, version 2, of a matrix and one gamma curve."""

    def xyz(values: NDArray[np.float64]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65_536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {
        b"desc": text, b"cprt": b"text\0\0\0\0free\0\0\0\0", b"wtpt": xyz(np.array([0.9642, 1.0, 0.8249])),
        b"rXYZ": xyz(matrix[:, 0]), b"gXYZ": xyz(matrix[:, 1]), b"bXYZ": xyz(matrix[:, 2]),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += padded
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63_190, 65_536, 54_061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def expected(colours: NDArray[np.float64], matrix: NDArray[np.float64], gamma: float = 2.2) -> NDArray[np.float64]:
    """The same colours in sRGB by its definition (IEC 61966-2-1), 0 to 255, clipped."""
    linear = np.linalg.solve(SRGB, matrix @ ((colours / 255) ** gamma).T).T.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("matrix", [DISPLAY_P3, ADOBE_RGB])
def test_wide_colours_become_those_of_srgb(matrix: NDArray[np.float64]) -> None:
    sent = np.array([COLOURS], dtype=np.uint8)
    found = wide_gamut(profile(matrix))
    assert found is not None
    converted = np.asarray(to_srgb(Image.fromarray(sent), found))[0]
    assert np.abs(converted - expected(np.array(COLOURS, dtype=float), matrix)).max() <= 2
    # Not only rounding: the first colour moves visibly.
    assert np.abs(converted[0].astype(int) - sent[0, 0]).max() > 8


def test_srgb_changes_nothing() -> None:
    assert wide_gamut(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()) is None
    assert wide_gamut(None) is None


@pytest.mark.parametrize(
    "damaged",
    [b"", b"no profile", bytes(200), profile(DISPLAY_P3)[:300], profile(DISPLAY_P3, space=b"GRAY"), bytes(1 << 20)],
)
def test_damaged_and_other_profiles_are_ignored(damaged: bytes) -> None:
    assert wide_gamut(damaged) is None


def test_a_profile_that_lists_what_it_lacks_is_ignored() -> None:
    torn = bytearray(profile(ADOBE_RGB))
    # The red primary lies beyond the end.
    position = torn.index(b"rXYZ") + 4
    torn[position : position + 4] = b"\x7f\xff\xff\xff"
    assert wide_gamut(bytes(torn)) is None
