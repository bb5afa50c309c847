"""Cells of the feature map as boxes in the pixels of the original picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import Cells, Geometry, InputRule, geometry_of, placement_of

RESIZES = ("stretch", "crop", "pad")
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
MODELS = st.tuples(st.integers(1, 512), st.integers(1, 512))


def rule(resize: str, height: int = 96, width: int = 96) -> InputRule:
    return InputRule.model_validate({"height": height, "width": width, "resize": resize})


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (37, 1000)])
def test_boxes_of_all_cells_tile_the_picture(size: tuple[int, int], resize: str) -> None:
    geometry = geometry_of(*size, rule(resize))
    covered = np.zeros((size[1], size[0]), dtype=int)
    for cell in range(49):
        left, top, right, bottom = geometry.cell_box(cell, Cells(7, 7))
        if resize == "stretch" and min(size) >= 7:
            covered[top:bottom, left:right] += 1
        else:
            covered[top:bottom, left:right] = 1
    assert (covered == 1).all()


def test_cell_box_by_hand() -> None:
    # 400 × 200 cropped to a square: the middle 200 × 200, starting at x = 100.
    crop = geometry_of(400, 200, rule("crop", 100, 100))
    assert crop.cell_box(0, Cells(2, 2)) == (100, 0, 200, 100)
    assert crop.cell_box(3, Cells(2, 2)) == (200, 100, 300, 200)
    # Padded to a square: 100 × 50 in the middle, 25 grey rows above and below.
    pad = geometry_of(400, 200, rule("pad", 100, 100))
    # Three cells wide and high, as far as the map reaches.
    assert crop.cell_box(0, Cells(4, 4, smoothing=3)) == (100, 0, 200, 100)
    assert crop.cell_box(5, Cells(4, 4, smoothing=3)) == (100, 0, 250, 150)
    assert pad.cell_box(0, Cells(4, 4)) == (0, 0, 100, 1)  # wholly in the padding: the nearest row
    assert pad.cell_box(5, Cells(4, 4)) == (100, 0, 200, 100)
    assert pad.cell_box(15, Cells(4, 4)) == (300, 199, 400, 200)


def test_a_cell_outside_the_map_is_refused() -> None:
    with pytest.raises(ValueError, match="cell 9 is outside a feature map of 3 × 3"):
        Geometry(9, 9, 9, 9, 1, 1, 0, 0).cell_box(9, Cells(3, 3))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1, 500), (3, 2)])
def test_a_fitted_picture_has_the_geometry_of_its_size(size: tuple[int, int], resize: str) -> None:
    fitted = fit(decode(Image.new("RGB", size)), rule(resize, 32, 48))
    assert fitted.geometry == geometry_of(*size, rule(resize, 32, 48))


@given(
    size=SIZES,
    model=MODELS,
    share=st.floats(0.1, 1.0),
)
def test_a_crop_is_centred_has_the_model_s_shape_and_is_as_large_as_allowed(
    size: tuple[int, int], model: tuple[int, int], share: float
) -> None:
    (width, height), (across, down) = size, model
    crop = InputRule(height=down, width=across, resize="crop", share=share)
    left, top, right, bottom = placement_of(width, height, crop).region
    assert left == pytest.approx(width - right, abs=1e-9) and top == pytest.approx(height - bottom, abs=1e-9)
    assert (right - left) * down == pytest.approx((bottom - top) * across)
    assert max((right - left) / width, (bottom - top) / height) == pytest.approx(share)


@given(
    size=SIZES,
    model=MODELS,
)
def test_padding_fills_one_side_and_centres_on_the_other(size: tuple[int, int], model: tuple[int, int]) -> None:
    (width, height), (across, down) = size, model
    placement = placement_of(width, height, rule("pad", down, across))
    (columns, rows), (left, top) = placement.size, placement.origin
    assert placement.region == (0, 0, width, height)
    assert columns == across or rows == down
    scale = min(across / width, down / height)
    assert abs(columns - max(1, width * scale)) <= 0.5 and abs(rows - max(1, height * scale)) <= 0.5
    assert 0 <= across - columns - 2 * left <= 1 and 0 <= down - rows - 2 * top <= 1


@pytest.mark.parametrize(
    "changed", [{"height": 0}, {"width": -1}, {"resize": "cover"}, {"share": 0}, {"share": 1.1}, {"shape": 3}]
)
def test_a_rule_refuses_values_out_of_range(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InputRule.model_validate({"height": 9, "width": 9, "resize": "crop", **changed})
