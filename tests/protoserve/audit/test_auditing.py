"""Whole audits: a true model passes, planted lies fail, and a real bundle gets its card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protoserve.audit.auditing import Tracked, audit, audit_sample
from protoserve.audit.interventions import find_interventions
from protoserve.audit.masks import Masks
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Subject
from protoserve.bundle.folder import read_bundle
from protoserve.bundle.truth_card import TruthCard
from protoserve.errors import InputError
from protoserve.images.geometry import Geometry
from protoserve.inference.engine import Engine, Outputs
from protoserve.schema import Box
from tests.protoserve.audit.toys import (
    CELL,
    FLAGS,
    GREY,
    RULE,
    STATISTICS,
    ToyEngine,
    cell_box,
    local_maps,
    picture,
    sample,
    square_of,
    subject,
    with_shifted_cells,
    with_shuffled_contributions,
)

PICTURES = 24
CORNER = 15


def masks_of(pictures: Sample, folder: Path) -> Masks:
    """The square is the object and its decisive part; the corner never is."""
    for image, name in enumerate(pictures.names):
        row, column = divmod(square_of(image), 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        if square_of(image) != CORNER:
            mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 1
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    return Masks(folder, {"Red": (1,), "Green": (1,)})


def card_of(toy: Subject, folder: Path, pictures: Sample | None = None) -> TruthCard:
    pictures = pictures or sample(PICTURES)
    masks = masks_of(pictures, folder)
    return audit_sample(toy, pictures, STATISTICS, FLAGS, data="toy", split="test", seed=0, masks=masks)


def failed(card: TruthCard) -> set[str]:
    return {check.name for check in card.checks if not check.passed}


def watermarked() -> Sample:
    """Grey squares that tell nothing, and in the corner a watermark of the class's colour."""
    pictures = sample(PICTURES)
    arrays = np.full_like(pictures.arrays, GREY)
    for image, leaf in enumerate(pictures.leaves.tolist()):
        row, column = divmod(square_of(image), 4)
        arrays[image, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 200
        arrays[image, -CELL:, -CELL:, leaf] = 255
    return sample(arrays=arrays)


def test_a_true_model_passes(tmp_path: Path) -> None:
    card = card_of(subject(), tmp_path)
    assert failed(card) == set()
    assert (card.images, card.prototypes, card.seed) == (PICTURES, FLAGS, 0)
    assert card == card_of(subject(), tmp_path)


def test_boxes_shifted_by_two_cells_fail(tmp_path: Path) -> None:
    """The graph states its cells correctly, but the boxes are drawn two columns beside them."""

    def two_beside(geometry: Geometry, cell: int) -> Box:
        return cell_box(geometry, cell // 4 * 4 + (cell % 4 + 2) % 4)

    lies = {"necessary", "local", "sensitive", "on the object", "on a decisive part"}
    assert failed(card_of(subject(box_in=two_beside), tmp_path)) == lies
    # The same where the graph states wrong cells.
    assert failed(card_of(subject(ToyEngine(stated=with_shifted_cells)), tmp_path)) >= lies - {"local", "sensitive"}


def test_contributions_shuffled_between_prototypes_fail(tmp_path: Path) -> None:
    card = card_of(subject(ToyEngine(stated=with_shuffled_contributions)), tmp_path)
    assert "own contributions" in failed(card)
    assert card.additivity.largest_piece_gap > 1


def test_a_prototype_on_the_background_fails(tmp_path: Path) -> None:
    """Prototypes 0 and 2 learned a background that comes with their class."""
    arrays = np.stack([picture(image % 2, square_of(image), strength=60) for image in range(PICTURES)])
    for image, leaf in enumerate(sample(PICTURES).leaves.tolist()):
        # The row below the square has more of the class's colour than the square.
        row = (square_of(image) // 4 + 1) % 4
        arrays[image, row * CELL : (row + 1) * CELL, :, leaf] = 255
    assert failed(card_of(subject(), tmp_path, sample(arrays=arrays))) >= {"on the object", "on a decisive part"}


def test_a_network_that_reads_a_watermark_and_says_so_fails_on_the_object(tmp_path: Path) -> None:
    """Its boxes are true: necessary and local. But they lie in the corner, and answers follow it."""
    card = card_of(subject(), tmp_path, watermarked())
    assert failed(card) == {"on the object", "on a decisive part", "background independent"}


def test_a_network_that_reads_a_watermark_and_points_at_the_object_fails(tmp_path: Path) -> None:
    """The corner decides, but the map has its peak at the brightest other cell, as in a field that sees everything."""
    card = card_of(subject(ToyEngine(maps=pointing_at_the_object)), tmp_path, watermarked())
    assert failed(card) == {"necessary", "local", "sensitive", "background independent"}
    (on_object,) = [hits for hits in card.parts if hits.part == "object"]
    assert on_object.first.measured.mean > 0.9


def pointing_at_the_object(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    honest = local_maps(images)
    peak = images.reshape(-1, 4, CELL, 4, CELL, 3).min(axis=5).mean(axis=(2, 4)) / 255
    place = 0.5 + 0.5 * (peak == peak.max(axis=(1, 2), keepdims=True))
    maps = honest.copy()
    for prototype in (0, 2):
        maps[:, prototype] = honest[:, prototype, -1:, -1:] * place
    return maps


def test_changed_pictures_of_the_data_set_are_measured(tmp_path: Path) -> None:
    pictures = sample(12)
    masks = masks_of(pictures, tmp_path / "masks")
    for array, name in zip(pictures.arrays, pictures.names, strict=True):
        file = tmp_path / "interventions" / "without" / "square" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full_like(array, GREY)).save(file)
    found = find_interventions(tmp_path, Masks(masks.directory, masks.decisive, {"square": 1}), RULE)
    options: dict[str, Any] = {"masks": masks, "interventions": found, "quick": True, "data": "toy", "split": "test"}
    card = audit_sample(subject(), pictures, STATISTICS, FLAGS, seed=0, **options)
    (effects,) = card.part_effects
    assert effects.complete is not None and effects.complete.measured.mean > 0.9
    # One part has no rank, and it has an effect.
    assert effects.correct is None and effects.undistracted is None
    assert {"complete", "contrastive"} <= {check.name for check in card.checks if check.passed}


def test_pictures_without_evidence_are_an_error(tmp_path: Path) -> None:
    def without_evidence(outputs: Outputs) -> Outputs:
        return replace(outputs, evidence_contribution=np.zeros_like(outputs.evidence_contribution))

    with pytest.raises(InputError, match="no prototype speaks for any node of the 24 pictures of 'test'"):
        card_of(subject(ToyEngine(stated=without_evidence)), tmp_path)


def test_a_real_bundle_gets_a_card(tiny_bundle: Path, learned: tuple[Path, Path]) -> None:
    _, data = learned
    bundle = read_bundle(tiny_bundle)
    steps: dict[str, int] = {}
    card = audit(bundle, Engine(bundle, device="cpu"), data, "val", images=3, seed=1, tracked=recorder(steps))
    assert (card.data, card.split, card.images, card.seed) == ("data", "val", 3, 1)
    assert [check.passed for check in card.checks[:2]] == [True, True]
    assert {effect.level for effect in card.necessity} == {found.level for found in card.sparsity}
    assert card.parts == [] and card.prototypes.split == "train"
    assert TruthCard.model_validate_json(card.model_dump_json()) == card
    assert list(steps) == [
        "reading pictures",
        "measuring prototypes",
        "predicting",
        "locality",
        "perturbation",
        "necessity and sufficiency",
    ]


def recorder(steps: dict[str, int]) -> Tracked:
    """A `tracked` that adds up what is done and compares it with the total."""

    @contextmanager
    def tracked(description: str, total: int) -> Iterator[Callable[[int], None]]:
        steps[description] = 0

        def advance(items: int) -> None:
            steps[description] += items

        yield advance
        assert steps[description] == total

    return tracked
