"""Evidence on the object and on its decisive part, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.masks import Masks
from protoserve.audit.parts import part_hits
from protoserve.audit.sample import Sample
from protoserve.audit.subject import pieces_of
from protoserve.bundle.truth_card import PartHits
from protoserve.errors import InputError
from tests.protoserve.audit.toys import CELL, ToyEngine, sample, square_of, subject, with_shifted_cells


def write_masks(pictures: Sample, folder: Path) -> Masks:
    """The square is the decisive part 2; the cells left and right of it in its row are part 1 of the object."""
    for image, name in enumerate(pictures.names):
        row, column = divmod(square_of(image), 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[row * CELL : (row + 1) * CELL, max(0, column - 1) * CELL : (column + 2) * CELL] = 1
        mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    return Masks(folder, {"Red": (2,), "Green": (2,)})


def hits(folder: Path, engine: ToyEngine | None = None) -> dict[str, PartHits]:
    toy = subject(engine)
    pictures = sample(4)  # squares at cells 1, 6, 11 and 0
    outputs = toy.run(pictures.arrays)
    masks = write_masks(pictures, folder)
    return {found.part: found for found in part_hits(toy, pictures, masks, pieces_of(outputs), seed=0)}


def test_shares_and_chance_are_counted_by_hand(tmp_path: Path) -> None:
    found = hits(tmp_path)
    assert list(found) == ["object", "decisive"]
    on_object, decisive = found["object"], found["decisive"]
    assert on_object.first.measured.mean == decisive.first.measured.mean == 1.0
    # The objects have 3, 3, 2 and 2 cells of 16: the squares at 11 and 0 are at an edge.
    assert on_object.first.baseline.mean == (3 + 3 + 2 + 2) / 4 / 16
    assert decisive.first.baseline.mean == 1 / 16
    assert on_object.first.measured.images == 4


def test_the_first_three_count_all_shown_pieces(tmp_path: Path) -> None:
    # Red pictures show the redness alone; Green ones also that red is missing, whose best cell is cell 0, a tie.
    toy = subject()
    pictures = sample(4)
    outputs = toy.run(pictures.arrays)
    shares = []
    for piece in pieces_of(outputs):
        cells = piece.cells[:3].tolist()
        shares.append(np.mean([cell == square_of(piece.image) for cell in cells]))
    assert hits(tmp_path)["decisive"].first_three.measured.mean == pytest.approx(np.mean(shares))
    assert 0 < np.mean(shares) < 1


def test_boxes_shifted_by_two_cells_leave_the_part(tmp_path: Path) -> None:
    found = hits(tmp_path, ToyEngine(stated=with_shifted_cells))
    assert found["decisive"].first.measured.mean == 0
    assert found["object"].first.difference.low <= 0


def test_images_without_masks_are_left_out_and_no_mask_at_all_is_an_error(tmp_path: Path) -> None:
    toy, pictures = subject(), sample(4)
    outputs = toy.run(pictures.arrays)
    masks = write_masks(pictures, tmp_path)
    (tmp_path / pictures.names[0]).unlink()
    found = part_hits(toy, pictures, masks, pieces_of(outputs), seed=0)
    assert found[0].first.measured.images == 3
    for name in pictures.names[1:]:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"holds no mask of the 4 audited pictures; the mask of test/Red/0\.png is"):
        part_hits(toy, pictures, masks, pieces_of(outputs), seed=0)


def test_nodes_without_decisive_parts_have_the_object_only(tmp_path: Path) -> None:
    toy, pictures = subject(), sample(4)
    outputs = toy.run(pictures.arrays)
    masks = Masks(write_masks(pictures, tmp_path).directory, {"Red": (2,)})
    found = part_hits(toy, pictures, masks, pieces_of(outputs), seed=0)
    assert [(hit.part, hit.first.measured.images) for hit in found] == [("object", 4), ("decisive", 2)]
