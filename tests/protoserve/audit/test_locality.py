"""Changes of a similarity when other pixels change: hand-made maps, a local network and one that looks elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.audit.locality import activation_change, locality, place_change, rank_change, similarity_at
from protoserve.audit.subject import Subject, pieces_of
from protoserve.bundle.folder import read_bundle
from protoserve.bundle.truth_card import Locality
from protoserve.inference.engine import Engine, Outputs
from tests.bundles import BundleFactory, RunOptions
from tests.protoserve.audit.toys import ToyEngine, local_maps, sample, subject


def measured(engine: ToyEngine | None = None) -> dict[str, Locality]:
    toy = subject(engine)
    pictures = sample()
    outputs = toy.run(pictures.arrays)
    return {found.replacement: found for found in locality(toy, pictures, outputs, pieces_of(outputs), seed=0)}


def test_a_local_network_does_not_change_outside_the_box() -> None:
    for found in measured().values():
        assert found.activation_change is not None and found.place_change is not None
        assert found.activation_change.measured.high == 0
        # Inside, the square is gone: the similarity at the cell is that of grey or of noise.
        assert found.activation_change.baseline.low > 50
        assert found.activation_change.difference.high < 0
        assert found.unknown == 0


def test_the_place_stays_where_nothing_outside_exceeds_the_cell() -> None:
    # The other picture's square is of the other colour, so the map above its 90th percentile is the one cell.
    change = measured()["picture"].place_change
    assert change is not None and change.measured.high == 0


def test_accuracy_falls_where_the_square_goes() -> None:
    # All 12 pictures are right. Outside replaced, the square stays and the other picture's rival appears: Red keeps its
    # lead by the prior, and Green loses. Inside replaced by the other picture, grey, the prior decides: Red.
    change = measured()["picture"].accuracy_change
    assert (change.measured.mean, change.baseline.mean) == (0.5, 0.5)


def test_a_network_that_looks_everywhere_is_found() -> None:
    def everywhere(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        # The brightest cell of all decides at every cell, as it would in a field that sees the whole picture.
        maps = local_maps(images)
        return np.asarray(0.01 * maps + 0.99 * maps.max(axis=(2, 3), keepdims=True))

    found = measured(ToyEngine(maps=everywhere))["picture"]
    assert found.activation_change is not None
    # The square itself lies in the box of the best cell, so it decides there.
    assert found.activation_change.measured.mean < 1 and found.activation_change.baseline.mean > 95
    elsewhere = measured(ToyEngine(maps=lambda images: np.roll(everywhere(images), 2, axis=3)))["picture"]
    assert elsewhere.activation_change is not None
    # The cell that is best now lies two columns from the square: the similarity comes from outside its box.
    assert elsewhere.activation_change.measured.low > 95
    assert elsewhere.activation_change.difference.low > 0


@pytest.mark.parametrize(("before", "after", "change"), [(2.0, 1.5, 25.0), (2.0, 3.0, 50.0), (-2.0, -1.0, 50.0)])
def test_activation_change_is_relative_and_absolute(before: float, after: float, change: float) -> None:
    assert activation_change(before, after) == change
    assert np.isnan(activation_change(0.0, after))


def test_place_change_compares_the_highest_tenth_of_the_cells() -> None:
    before = np.arange(20, dtype=np.float32).reshape(4, 5)  # the highest two are cells 18 and 19
    after = before.copy()
    after[3, 4], after[0, 0] = 0, 30  # now cells 18 and 0
    # One of three cells is in both.
    assert place_change(before, after) == pytest.approx(100 * (1 - 1 / 3))
    assert place_change(before, before) == 0
    flat = np.ones((4, 5), dtype=np.float32)
    assert place_change(flat, flat) == 0 and place_change(before, flat) == 100


def test_rank_change_counts_rivals_only() -> None:
    before, after = np.array([5.0, 9.0, 4.0, 3.0]), np.array([3.5, 9.0, 4.0, 3.0])
    assert rank_change(before, after, 0, np.array([2, 3])) == 1
    assert rank_change(after, before, 0, np.array([2, 3])) == -1
    assert rank_change(before, after, 0, np.array([1])) == 0


def test_the_similarity_at_a_cell_is_known_from_the_map_or_the_best_cell() -> None:
    outputs = subject().run(sample(2).arrays)
    prototype, square = 0, 1
    at_square, drawn = similarity_at(outputs, 0, prototype, square)
    assert at_square == pytest.approx(155 / 255) and drawn is not None
    assert similarity_at(outputs, 0, prototype, 7)[0] == 0
    # Without the map, only the best cell is known.
    hidden = replace(outputs, evidence_prototype=np.full_like(outputs.evidence_prototype, -1))
    at_best, missing = similarity_at(hidden, 0, prototype, square)
    assert at_best == pytest.approx(155 / 255) and missing is None
    assert np.isnan(similarity_at(hidden, 0, prototype, 7)[0])


def test_pieces_without_a_map_count_as_the_least_possible_fall_or_are_left_out() -> None:
    calls: list[int] = []

    def hidden(outputs: Outputs) -> Outputs:
        # The first call predicts; afterwards no map is drawn, and the best cell is another one.
        calls.append(len(outputs))
        if len(calls) == 1:
            return outputs
        similarity = np.stack([outputs.similarity[0] / 2, outputs.similarity[1] * 0 + 9]).astype(np.float32)
        nothing = np.full_like(outputs.evidence_prototype, -1)
        return replace(outputs, evidence_prototype=nothing, similarity=similarity, cell=outputs.cell * 0 + 15)

    toy = subject(ToyEngine(stated=hidden))
    pictures = sample(4)
    outputs = toy.run(pictures.arrays)
    (found,) = locality(toy, pictures, outputs, pieces_of(outputs), seed=0, replacements=("noise",))
    # Outside replaced: no cell exceeds half of the old similarity. Inside replaced: unknown, so no pair is complete.
    assert (found.bounded, found.unknown) == (4, 0)
    assert found.activation_change is None and found.place_change is None
    assert found.rank_change.measured.images == 4


def test_with_tiles_a_similarity_does_not_change_outside_its_box(bundle: BundleFactory) -> None:
    """An exported network that sees one tile at a time; without tiles it does change."""
    for options, local in ((RunOptions(tile=32), True), (RunOptions(), False)):
        opened = read_bundle(bundle(**options))
        real = Subject.of(opened, Engine(opened, device="cpu"))
        small = np.random.default_rng(0).integers(0, 255, (6, 8, 12, 3), dtype=np.uint8)
        arrays = small.repeat(real.size[0] // 8, axis=1).repeat(real.size[1] // 12, axis=2)
        pictures = sample(arrays=arrays)
        outputs = real.run(arrays)
        found_by_level = locality(real, pictures, outputs, pieces_of(outputs), seed=0)
        assert any(found.activation_change is not None for found in found_by_level)
        for found in found_by_level:
            change = found.activation_change
            if local:
                # Pieces are unknown where another tile became the best and the graph drew no map; nothing ever fell.
                assert found.bounded == 0
                assert change is None or change.measured.high < 1e-3, found
            else:
                assert change is not None and change.measured.low > 0.1, found
