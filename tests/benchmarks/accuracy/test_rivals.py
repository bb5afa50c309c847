"""Evidence beside attributions, on the audit's toy model, whose evidence is worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.accuracy.rivals import (
    OURS,
    Method,
    accuracy,
    attributed,
    predicted,
    sampled_images,
    summary,
    with_regions,
)
from benchmarks.accuracy.rivals_table import table
from protoserve.audit.necessity import box_effects
from protoserve.audit.parts import part_hits
from protoserve.audit.regions import STEPS, ladder
from protoserve.audit.subject import Piece, pieces_of
from tests.protoserve.audit.test_parts import write_masks
from tests.protoserve.audit.toys import CELL, sample, subject

IMAGES = 12
TOY, PICTURES = subject(), sample(IMAGES)
OUTPUTS = TOY.run(PICTURES.arrays)
PIECES = pieces_of(OUTPUTS)


def our_regions(piece: Piece) -> NDArray[np.bool_]:
    return ladder([TOY.box(cell) for cell in piece.cells.tolist()], TOY.size)


def coloured(picture: NDArray[np.uint8], node: int) -> NDArray[np.float64]:
    """An attribution that finds the square: how far a pixel is from grey."""
    return np.asarray(np.ptp(picture.astype(np.float64), axis=2))


@pytest.fixture(scope="module")
def ours() -> Method:
    return with_regions(Method(TOY), PICTURES, PIECES, our_regions)


def rival(attribute: object = coloured) -> Method:
    paths = predicted(TOY, TOY, PICTURES.arrays)
    return attributed(TOY, TOY, PICTURES, PIECES, paths, attribute)  # type: ignore[arg-type]


def test_our_effects_are_those_of_the_audit(ours: Method) -> None:
    necessity, sufficiency = box_effects(TOY, PICTURES, OUTPUTS, PIECES, seed=0)
    for mode, found in (("necessity", necessity), ("sufficiency", sufficiency)):
        for effect in found:
            rows = np.stack(ours.effects[mode, effect.level, effect.fill])
            assert rows[:, : len(STEPS)].mean(axis=0).tolist() == pytest.approx(effect.evidence)


def test_what_finds_the_same_boxes_has_the_same_effects(ours: Method) -> None:
    other = rival()
    assert other.images == ours.images
    for key, rows in ours.effects.items():
        # The toy shows one or more pieces; the first step is the box of the square.
        assert np.stack(other.effects[key])[:, 0] == pytest.approx(np.stack(rows)[:, 0]), key


def test_a_rival_covers_the_area_of_ours_at_every_step() -> None:
    seen: list[NDArray[np.bool_]] = []

    class Watching:
        """Answers as the toy and keeps the pictures that it is asked for."""

        def log_probability(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
            seen.append((images != PICTURES.arrays[0]).any(axis=3))
            return TOY.log_probability(images)

    first = [piece for piece in PIECES if piece.image == 0]
    # Seen from a corner, so that the boxes are at other places than ours.
    corner = np.zeros(TOY.size)
    corner[: CELL + 3, :CELL] = 1.0
    paths = predicted(TOY, TOY, PICTURES.arrays)
    attributed(TOY, Watching(), PICTURES, first, paths, lambda picture, node: corner)
    # The first call fills regions with the mean colour, which differs from every pixel; nothing and the whole picture
    # are among them.
    areas = {int(changed.sum()) for changed in seen[0]}
    own = {int(region.sum()) for region in our_regions(first[0])}
    assert len(own) > 1
    assert areas == {0, *own, TOY.size[0] * TOY.size[1]}


def test_the_whole_picture_and_random_regions_stand_beside_the_boxes(ours: Method) -> None:
    evidence, random, whole = ours.areas("necessity", 1, "mean")
    assert evidence.shape == random.shape == whole.shape == (IMAGES,)
    assert (whole > 0).all() and evidence.mean() > random.mean()
    # All that a picture of one square has to say lies in the square.
    assert np.stack(ours.effects["sufficiency", 1, "swap"])[:, 2 * len(STEPS)].mean() > 0


def test_predictions_and_accuracy_are_by_level() -> None:
    paths = predicted(TOY, TOY, PICTURES.arrays)
    assert (paths == OUTPUTS.path).all()
    assert accuracy(TOY, paths, PICTURES) == [1.0]
    assert accuracy(TOY, 1 - paths, PICTURES) == [0.0]


def test_pictures_for_slow_methods_are_spread_over_the_sample() -> None:
    assert sampled_images(40, 3) == {0, 20, 39}
    assert sampled_images(2, 5) == {0, 1}


def test_the_table_says_where_ours_is_worse(ours: Method, tmp_path: Path) -> None:
    masks = write_masks(PICTURES, tmp_path)

    def hits_of(pieces: list[Piece]) -> list[object]:
        return list(part_hits(TOY, PICTURES, masks, pieces, seed=0))

    # Without its first box, a method loses to one that finds the square.
    blind = rival(lambda picture, node: -coloured(picture, node))
    good, bad = summary(blind, ours, hits_of), summary(ours, blind, hits_of)  # type: ignore[arg-type]
    found = {
        "backbone": "toy",
        "images": IMAGES,
        "levels": [1],
        "accuracy": {"ours": [1.0], "plain": [1.0]},
        "milliseconds": {OURS: 2.0, "LIME": 300.0, "ours, beside LIME and KernelSHAP": 3.0},
    }
    document = {"machine": {"versions": {}, "processor": "a", "cores": 1, "python": "3"}, "threads": 1}
    methods = {OURS: summary(ours, ours, hits_of), "blind": bad}  # type: ignore[arg-type]
    text = table(document | {"sets": {"toys": found | {"methods": methods}}})
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 | blind | 12 |")][:1]
    assert row.count("**more**") == 3
    worse = table(document | {"sets": {"toys": found | {"methods": {OURS: methods[OURS], "square": good}}}})
    (row,) = [line for line in worse.splitlines() if line.startswith("| 1 | square | 12 |")][:1]
    assert row.count("**less**") == 3
    assert "| 1 | decisive | blind | 12 | 0.00 [0.00, 0.00] |" in text
    assert "| LIME | 300.0 | 100.0 |" in text
