"""Masks beside a data set, and what is wrong with those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.masks import find_masks
from protoserve.errors import InputError

DESCRIPTION = {"parts": {"0": None, "1": "body", "2": "beak"}, "decisive": {"Bird": ["beak"], "Bird/Lark": ["body"]}}


def write_mask(folder: Path, image: str, mask: np.ndarray) -> None:
    file = (folder / image).with_suffix(".png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)


def test_masks_mirror_the_images_and_the_description_names_their_parts(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [0, 0, 1]], dtype=np.uint8)
    write_mask(tmp_path / "masks", "test/Bird/1.jpg", mask)
    (tmp_path / "parts.json").write_text(json.dumps(DESCRIPTION))
    masks = find_masks(tmp_path, None)
    assert masks is not None and masks.decisive == {"Bird": (2,), "Bird/Lark": (1,)}
    read = masks.read("test/Bird/1.jpg", (2, 3))
    assert read is not None and (read == mask).all()
    assert masks.read("test/Bird/2.jpg", (2, 3)) is None


def test_a_palette_mask_is_read_by_its_values(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpixel((1, 0), 2)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    (tmp_path / "m").mkdir()
    image.save(tmp_path / "m" / "1.png")
    found = find_masks(tmp_path, tmp_path / "m")
    assert found is not None and found.decisive == {}
    values = found.read("1.jpg", (1, 2))
    assert values is not None and values.tolist() == [[0, 2]]


def test_a_data_set_without_masks_has_none(tmp_path: Path) -> None:
    assert find_masks(tmp_path, None) is None
    with pytest.raises(InputError, match="no such folder; --masks takes"):
        find_masks(tmp_path, tmp_path / "nowhere")


def test_a_mask_of_another_size_or_colour_is_refused(tmp_path: Path) -> None:
    write_mask(tmp_path, "1.png", np.zeros((2, 3), dtype=np.uint8))
    write_mask(tmp_path, "2.png", np.zeros((4, 5, 3), dtype=np.uint8))
    (tmp_path / "3.png").write_text("no picture")
    masks = find_masks(tmp_path, tmp_path)
    assert masks is not None
    with pytest.raises(InputError, match=r"1\.png: is L of 3 × 2 pixels; .* 5 × 4 pixels as its image"):
        masks.read("1.jpg", (4, 5))
    with pytest.raises(InputError, match=r"2\.png: is RGB"):
        masks.read("2.jpg", (4, 5))
    with pytest.raises(InputError, match=r"3\.png: can't read the mask"):
        masks.read("3.jpg", (4, 5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "not a description of parts"),
        ("[1]", "not a description of parts"),
        ('{"decisive": {}}', "not a description of parts"),
        ('{"parts": {"1": "body"}, "decisive": {"Bird": ["beak"]}}', "'Bird' is told by 'beak', which is not one"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "parts.json").write_text(content)
    with pytest.raises(InputError, match=message):
        find_masks(tmp_path, tmp_path)
