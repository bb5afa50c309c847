"""Perturbations of the box and of the rest, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.audit.perturbation import KINDS, perturbation, perturbed, waves
from protoserve.audit.subject import pieces_of
from protoserve.bundle.truth_card import Perturbation
from protoserve.images.geometry import Geometry
from protoserve.schema import Box
from tests.protoserve.audit.toys import GREY, ToyEngine, cell_box, local_maps, sample, subject

BOX = (0, 0, 8, 8)


def found_with(engine: ToyEngine | None = None, shift: int = 0) -> dict[str, Perturbation]:
    def beside(geometry: Geometry, cell: int) -> Box:
        return cell_box(geometry, cell // 4 * 4 + (cell % 4 + shift) % 4)

    toy, pictures = subject(engine, box_in=beside), sample(12)
    outputs = toy.run(pictures.arrays)
    return {found.kind: found for found in perturbation(toy, pictures, outputs, pieces_of(outputs), seed=0)}


def test_a_change_of_the_box_lowers_the_similarity_and_one_outside_does_not() -> None:
    found = found_with()
    assert list(found) == [*KINDS, "all"]
    drops = {kind: one.drop for kind, one in found.items()}
    assert all(drop is not None and drop.baseline.mean == 0 and drop.measured.images == 12 for drop in drops.values())
    means = {kind: drop.measured.mean for kind, drop in drops.items() if drop is not None}
    # The similarity is the difference of two channels, 155 of 255: 0.3, 0.2 and 0.3 of it remain, within rounding.
    kept = {"brightness": 0.3, "contrast": 0.2, "saturation": 0.3}
    assert [means[kind] for kind in kept] == pytest.approx([1 - share for share in kept.values()], abs=0.01)
    # 72 degrees on, red is (224, 255, 100), which has none of its similarity; green is (100, 224, 255): 124 of 155.
    assert means["hue"] == pytest.approx((1 + 0.2) / 2, abs=0.005)
    assert 0 < means["blur"] < 0.6 and means["waves"] > 0
    assert means["all"] == pytest.approx(np.mean([means[kind] for kind in KINDS]))
    assert all((one.bounded, one.unknown) == (0, 0) for one in found.values())


def test_a_lie_about_the_place_is_found() -> None:
    drop = found_with(shift=2)["all"].drop
    assert drop is not None and drop.measured.mean == 0 and drop.difference.high < 0


def test_a_similarity_that_reads_the_whole_picture_is_found() -> None:
    def global_maps(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        maps = local_maps(images)
        return np.broadcast_to(maps.mean(axis=(2, 3), keepdims=True), maps.shape)

    drop = found_with(ToyEngine(maps=global_maps))["all"].drop
    assert drop is not None and drop.baseline.mean > 0.2


def test_waves_shift_rows_then_columns() -> None:
    picture = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
    # 20 pixels in 5 periods: a period of 4 pixels, so shifts of 0, 7, 0 and -7 in turn.
    rolled = picture.copy()
    for row in range(20):
        rolled[row] = np.roll(rolled[row], (0, 7, 0, -7)[row % 4], axis=0)
    for column in range(20):
        rolled[:, column] = np.roll(rolled[:, column], (0, 7, 0, -7)[column % 4], axis=0)
    # The sine of a half period is not exactly 0, but truncates to it.
    assert (waves(picture, 20) == rolled).all()


def test_grey_has_neither_saturation_nor_hue_to_lose() -> None:
    grey = np.full((8, 8, 3), GREY, dtype=np.uint8)
    for kind in ("saturation", "hue", "contrast", "blur", "waves"):
        assert (perturbed(grey, kind, BOX) == grey).all()
    assert (perturbed(grey, "brightness", BOX) == 30).all()
