"""What evidence says of parts beside what the answer loses without them, worked by hand on the toy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats  # type: ignore[import-untyped]

from protoserve.audit.interventions import Interventions
from protoserve.audit.masks import Masks
from protoserve.audit.part_effects import (
    THRESHOLDS,
    found_decisive,
    not_distracted,
    part_effects,
    rank_correlation,
    shares_of,
)
from protoserve.audit.subject import Subject, pieces_of
from protoserve.bundle.truth_card import Comparison, PartEffects
from tests.protoserve.audit.toys import CELL, GREY, RULE, TAXONOMY, ToyEngine, local_maps, sample, square_of, subject

PICTURES = 12
PARTS = {"square": 1, "slab": 2, "stone": 3}
DECISIVE = {"Red": (1,), "Green": (1,)}


def cells_of(image: int) -> dict[str, list[int]]:
    """Where the parts lie: the square decides; a slab of two cells and a stone of one have the background's colour.
    Cell 0 is free, for prototypes that find nothing peak there."""
    free = [cell for cell in range(1, 16) if cell != square_of(image)]
    return {"square": [square_of(image)], "slab": free[3:5], "stone": free[8:9]}


def area(cell: int) -> tuple[slice, slice]:
    row, column = divmod(cell, 4)
    return slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


def effects_of(folder: Path, toy: Subject) -> PartEffects:
    pictures = sample(PICTURES)
    for image, name in enumerate(pictures.names):
        mask = np.zeros((32, 32), dtype=np.uint8)
        for part, cells in cells_of(image).items():
            lacking = pictures.arrays[image].copy()
            for cell in cells:
                mask[area(cell)], lacking[area(cell)] = PARTS[part], GREY
            write(folder / "interventions" / "without" / part / name, lacking)
        write(folder / "masks" / name, mask)
        write(folder / "interventions" / "background" / name, pictures.arrays[image])
    outputs = toy.run(pictures.arrays)
    interventions = Interventions(folder / "interventions", PARTS, RULE)
    masks = Masks(folder / "masks", DECISIVE, PARTS)
    done: list[int] = []
    (found,) = part_effects(toy, pictures, masks, interventions, outputs, pieces_of(outputs), 0, done.append)
    assert sum(done) == PICTURES
    return found


def write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def means(comparison: Comparison | None) -> tuple[float, float]:
    assert comparison is not None
    return comparison.measured.mean, comparison.baseline.mean


def test_true_evidence_names_the_part_that_decides(tmp_path: Path) -> None:
    found = effects_of(tmp_path, subject())
    # Without the square the logit falls, without the others it stays: drops (d, 0, 0) and contributions (c, 0, 0). By
    # size the slab would count most: ranks (1.5, 3, 1.5) beside (3, 1.5, 1.5) correlate by -0.5.
    assert means(found.correct) == pytest.approx((1.0, -0.5))
    # The square has 1.43 of 2.43, or less where blue is missing, too; evenly spread it has 1/16 of the picture.
    assert means(found.complete) == pytest.approx((1.0, (THRESHOLDS < 1 / 16).mean()))
    # The slab, the stone and the background, which stays, have no effect, and the background has 14 sixteenths less a
    # slab and a stone: 12 cells. The evidence names none of the first two.
    even = 1 - ((THRESHOLDS < 2 / 16).mean() + (THRESHOLDS < 1 / 16).mean() + 1) / 3
    measured, baseline = means(found.undistracted)
    assert baseline == pytest.approx(even) and measured > baseline
    assert means(found.contrastive) == (1.0, 0.5)


def test_evidence_two_cells_beside_is_found(tmp_path: Path) -> None:
    engine = ToyEngine(maps=lambda images: np.roll(local_maps(images), 2, axis=3))
    found = effects_of(tmp_path, subject(engine))
    assert means(found.correct)[0] < 0.5 and means(found.complete)[0] < 0.5


def test_evidence_that_speaks_for_every_class_alike_is_found(tmp_path: Path) -> None:
    """Contributions that do not depend on the node, as of a map of salience."""

    class Salience(Subject):
        def contributions(self, node: int, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return super().contributions(TAXONOMY.index["Red"], similarity)

    toy = subject()
    found = effects_of(tmp_path, Salience(**{name: getattr(toy, name) for name in Subject.__dataclass_fields__}))
    assert means(found.contrastive) == (0.5, 0.5)


def test_ranks_correlate_as_in_scipy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(0, 4, (2, 6)).astype(float)
        if np.ptp(first) and np.ptp(second):
            assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
    assert np.isnan(rank_correlation(np.arange(2.0), np.arange(2.0)))


def test_parts_are_important_above_a_share_of_all_contributions() -> None:
    importance = np.zeros(256)
    importance[[0, 1, 2]] = 0.02, 0.3, 1.0
    assert found_decisive(importance, 2.0, [1]) == (THRESHOLDS < 0.15).mean()
    assert found_decisive(importance, 2.0, [1, 2]) == (THRESHOLDS < 0.5).mean()
    assert not_distracted(importance, 2.0, [0, 1]) == pytest.approx(1 - (THRESHOLDS < 0.15).mean() / 2)


def test_a_box_has_shares_of_parts() -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[:5, 4:] = 2
    shares = shares_of(mask, (2, 0, 6, 10))
    assert (shares[0], shares[2], shares.sum()) == (0.75, 0.25, 1.0)
