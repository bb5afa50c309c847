"""Changed pictures are found by name, and fitted as their pictures are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from protoserve.audit.interventions import Interventions, find_interventions
from protoserve.audit.masks import Masks
from protoserve.errors import InputError
from protoserve.images.geometry import geometry_of
from tests.protoserve.audit.toys import RULE

IMAGE = "test/Bird/1.png"
PARTS = {"beak": 5, "wing": 7}


def write(file: Path, size: tuple[int, int] = (40, 20), level: int = 100) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 0)).save(file)


def test_pictures_are_found_by_part_and_at_model_size(tmp_path: Path) -> None:
    write(tmp_path / "without" / "beak" / IMAGE, level=1)
    write(tmp_path / "background" / IMAGE, level=2)
    found, geometry = Interventions(tmp_path, PARTS, RULE), geometry_of(40, 20, RULE)
    without = found.without(IMAGE, geometry)
    assert list(without) == [5] and without[5].shape == (32, 32, 3) and (without[5][..., 0] == 1).all()
    behind = found.background(IMAGE, geometry)
    assert behind is not None and (behind[..., 0] == 2).all()
    assert found.without("test/Bird/2.png", geometry) == {} and found.background("test/Bird/2.png", geometry) is None


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "background" / IMAGE, (20, 20))
    with pytest.raises(InputError, match=r"1\.png: has 20 × 20 pixels and its picture 40 × 20; make it as large"):
        Interventions(tmp_path, PARTS, RULE).background(IMAGE, geometry_of(40, 20, RULE))


def test_they_lie_in_the_data_set_and_need_masks(tmp_path: Path) -> None:
    masks = Masks(tmp_path / "masks", {}, PARTS)
    assert find_interventions(tmp_path, masks, RULE) is None
    (tmp_path / "interventions").mkdir()
    assert find_interventions(tmp_path, None, RULE) is None
    found = find_interventions(tmp_path, masks, RULE)
    assert found is not None and found.parts == PARTS
