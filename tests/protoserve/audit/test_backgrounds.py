"""Objects on other backgrounds, worked by hand on the toy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from protoserve.audit.backgrounds import background_independence, without_object
from protoserve.audit.interventions import Interventions
from protoserve.audit.masks import Masks
from protoserve.audit.sample import Sample
from protoserve.audit.subject import pieces_of
from protoserve.bundle.truth_card import BackgroundIndependence
from tests.protoserve.audit.toys import CELL, GREY, RULE, sample, square_of, subject

PICTURES = 12
CORNER = 15


def independence(folder: Path, pictures: Sample, *, rendered: bool = False) -> dict[str, BackgroundIndependence]:
    """The square is the object, but in the corner; a rendered background is dark."""
    for image, name in enumerate(pictures.names):
        row, column = divmod(square_of(image), 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        if square_of(image) != CORNER:
            mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 1
        drawn = np.where(mask[..., None] > 0, pictures.arrays[image], np.uint8(20))
        for file, array in ((folder / "masks" / name, mask), (folder / "interventions" / "background" / name, drawn)):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    toy = subject()
    outputs = toy.run(pictures.arrays)
    drawn_anew = Interventions(folder / "interventions", {}, RULE) if rendered else None
    done: list[int] = []
    found = background_independence(
        toy, pictures, Masks(folder / "masks", {}), drawn_anew, outputs, pieces_of(outputs), 0, done.append
    )
    assert sum(done) == PICTURES
    return {one.background: one for one in found}


def test_an_answer_about_the_object_follows_it(tmp_path: Path) -> None:
    found = independence(tmp_path, sample(PICTURES), rendered=True)
    assert list(found) == ["rendered", "swapped"]
    for one in found.values():
        # The other image is of the other class, so with its square no answer stays.
        assert (one.answers.measured.mean, one.answers.baseline.mean) == (1.0, 0.0)
        assert one.first is not None and (one.first.measured.mean, one.first.baseline.mean) == (1.0, 0.0)
    # One image has its square in the corner, and so no object; it is another one's pair, too.
    assert 8 <= found["swapped"].answers.measured.images < PICTURES


def test_an_answer_about_a_watermark_follows_the_background(tmp_path: Path) -> None:
    pictures = sample(PICTURES)
    arrays = np.full_like(pictures.arrays, GREY)
    for image, leaf in enumerate(pictures.leaves.tolist()):
        row, column = divmod(square_of(image), 4)
        arrays[image, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 200
        arrays[image, -CELL:, -CELL:, leaf] = 255
    answers = independence(tmp_path, sample(arrays=arrays))["swapped"].answers
    assert (answers.measured.mean, answers.baseline.mean) == (0.0, 1.0)
    assert answers.difference.high < 0


def test_where_an_object_was_is_the_background_around_it() -> None:
    picture = np.full((32, 32, 3), 50, dtype=np.uint8)
    picture[:, 16:] = 150
    there = np.zeros((32, 32), dtype=np.bool_)
    there[10:20, 2:8] = True
    picture[there] = (255, 0, 0)
    filled = without_object(picture, there)
    assert (filled[~there] == picture[~there]).all()
    inside = filled[there].astype(int)
    assert np.abs(inside - 50).max() <= 6
    # Without any background, there is nothing to fill with but the picture's mean.
    assert (without_object(picture, np.ones_like(there)) == round(picture.mean())).all()
