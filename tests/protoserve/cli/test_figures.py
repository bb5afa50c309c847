"""Figures of evidence mark the right regions, whatever the shape of the photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.cli.figures import explain_figure, prototype_picture
from protoserve.images.decoding import decode
from protoserve.inference.classifier import Classifier, load
from protoserve.schema import Prediction
from tests.bundles import BundleFactory


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


def differing(before: Image.Image, after: Image.Image) -> NDArray[np.bool_]:
    changed = np.asarray(before).astype(int) != np.asarray(after).astype(int)
    return np.asarray(changed.any(axis=2))


@pytest.mark.parametrize("size", [(448, 224), (112, 448), (64, 64)])
def test_the_frame_surrounds_the_patch_and_covers_nothing_of_it(size: tuple[int, int]) -> None:
    grey = Image.new("RGB", size, (90, 120, 90))
    box = (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2)
    drawn = prototype_picture(grey, box)
    assert max(drawn.size) == 224
    changed = differing(Image.new("RGB", drawn.size, (90, 120, 90)), drawn)
    scale = 224 / max(size)
    left, top, right, bottom = (round(side * scale) for side in box)
    assert not changed[top:bottom, left:right].any()
    assert changed[top:bottom, left - 1].all() and changed[top:bottom, right].all()
    assert changed[top - 1, left:right].all() and changed[bottom, left:right].all()
    rows, columns = np.nonzero(changed)
    assert rows.min() >= top - 6 and rows.max() < bottom + 6
    assert columns.min() >= left - 6 and columns.max() < right + 6


def test_a_frame_at_the_border_is_seen_on_all_sides() -> None:
    drawn = np.asarray(prototype_picture(Image.new("RGB", (224, 224)), (0, 0, 40, 224)))
    yellow = (drawn == (255, 214, 0)).all(axis=2)
    assert yellow[:, :6].any(axis=1).sum() > 200
    assert yellow[:6].any() and yellow[-6:].any() and yellow[:, 38:48].any(axis=1).sum() > 200


def test_the_figure_shows_every_level(classifier: Classifier, photograph: Path) -> None:
    prediction = classifier.predict(photograph, top_k=2, maps=True)
    figure = explain_figure(classifier.bundle, decode(photograph), prediction)
    assert figure.width == 1200 and figure.mode == "RGB"
    more = prediction.model_copy(update={"levels": [*prediction.levels, prediction.levels[-1]]})
    assert explain_figure(classifier.bundle, decode(photograph), more).height > figure.height


def test_unknown_levels_are_marked_in_their_titles(classifier: Classifier, photograph: Path) -> None:
    prediction = classifier.predict(photograph, top_k=1)

    def drawn(known: bool | None) -> NDArray[np.uint8]:
        levels = [level.model_copy(update={"known": known}) for level in prediction.levels]
        changed = prediction.model_copy(update={"levels": levels})
        return np.asarray(explain_figure(classifier.bundle, decode(photograph), changed))

    assert (drawn(True) == drawn(None)).all()
    marked = (drawn(False) != drawn(True)).any(axis=(1, 2))
    # Once in the title of every level.
    assert (np.diff(marked.astype(int)) == 1).sum() >= len(prediction.levels)


def heat_moves(classifier: Classifier, cell: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """How far right and down, in the figure, the heat of a photograph of 440 × 220 pixels moves between two cells."""
    plain = Image.new("RGB", (400, 200), (128, 128, 128))
    prediction = classifier.predict(plain, top_k=1, maps=True)
    level = next(level for level in prediction.levels if level.evidence)
    rows, columns = classifier.bundle.grid

    def figure(row: int, column: int) -> NDArray[np.float64]:
        heat = np.zeros((rows, columns))
        heat[row, column] = 5.0
        one = level.evidence[0].model_copy(update={"map": heat.tolist(), "box": (0, 0, 1, 1)})
        shown = prediction.model_copy(update={"levels": [level.model_copy(update={"evidence": [one]})]})
        drawn = explain_figure(classifier.bundle, decode(plain), shown)
        # The photograph is on the left; small pictures of it follow.
        return np.asarray(np.asarray(drawn, dtype=float).sum(axis=2)[:, : 32 + 440])

    # Where the photograph lies in the figure does not depend on the map, so only the heat moves.
    upper_left, lower_right = figure(*cell), figure(*other)
    y, x = np.unravel_index(np.argmax(upper_left - lower_right), upper_left.shape)
    other_y, other_x = np.unravel_index(np.argmax(lower_right - upper_left), upper_left.shape)
    return float(other_x - x), float(other_y - y)


def test_heat_is_drawn_where_the_map_is_high(classifier: Classifier) -> None:
    rows, columns = classifier.bundle.grid
    right, down = heat_moves(classifier, (1, 2), (rows - 2, columns - 3))
    assert right == pytest.approx((columns - 5) / columns * 440, abs=12)
    assert down == pytest.approx((rows - 3) / rows * 220, abs=12)


def test_heat_lies_on_the_centres_of_overlapping_tiles(bundle: BundleFactory) -> None:
    """3 × 5 tiles of 32 pixels, one every 16, over 64 × 96 pixels: their centres are 16 pixels from the edges."""
    tiled = load(bundle("tiled", tile=32, tile_step=16), device="cpu")
    assert tiled.bundle.grid == (3, 5)
    right, down = heat_moves(tiled, (1, 1), (1, 3))
    assert right == pytest.approx(2 * 16 / 96 * 440, abs=8)
    assert down == pytest.approx(0, abs=8)


@pytest.mark.parametrize("size", [(1, 1), (3000, 20), (20, 3000)])
@pytest.mark.parametrize("maps", [True, False])
def test_extreme_photographs_are_drawn(classifier: Classifier, size: tuple[int, int], maps: bool) -> None:
    image = decode(Image.new("RGB", size, (200, 10, 10)))
    prediction = classifier.predict(image.picture, maps=maps)
    assert explain_figure(classifier.bundle, image, prediction).width == 1200


def test_long_and_foreign_names_stay_inside(tiny_bundle: Path, classifier: Classifier, photograph: Path) -> None:
    bundle: Bundle = read_bundle(tiny_bundle)
    prediction: Prediction = classifier.predict(photograph, top_k=1)
    long = "Ünïcode 名前 " * 40
    levels = [
        level.model_copy(
            update={
                "label": long,
                "evidence": [
                    one.model_copy(update={"source": one.source and one.source.model_copy(update={"image": long})})
                    for one in level.evidence
                ],
            }
        )
        for level in prediction.levels
    ]
    drawn = explain_figure(bundle, decode(photograph), prediction.model_copy(update={"path": [long], "levels": levels}))
    assert (np.asarray(drawn)[:, -30:] == 255).all()


def against(classifier: Classifier, photograph: Path, contribution: float, similarity: float) -> NDArray[np.uint8]:
    """The figure of one level with one piece of evidence against its node."""
    prediction = classifier.predict(photograph, top_k=1)
    level = next(level for level in prediction.levels if level.against)
    piece = level.against[0].model_copy(
        update={"contribution": contribution, "similarity": similarity, "usual": 1.0, "box": (40, 40, 60, 60)}
    )
    shown = level.model_copy(update={"evidence": [], "against": [piece]})
    drawn = explain_figure(classifier.bundle, decode(photograph), prediction.model_copy(update={"levels": [shown]}))
    return np.asarray(drawn)


def test_evidence_against_a_node_is_drawn_in_its_own_colour(classifier: Classifier, photograph: Path) -> None:
    vermilion = (213, 94, 0)
    assert (against(classifier, photograph, -0.5, 2.0) == vermilion).all(axis=2).sum() > 200
    # Nothing is left to see of a contribution that rounds to 0.
    assert not (against(classifier, photograph, -0.004, 2.0) == vermilion).all(axis=2).any()


def test_a_box_of_less_than_usual_similarity_is_dashed(classifier: Classifier, photograph: Path) -> None:
    ink = (24, 28, 36)
    like, unlike = (against(classifier, photograph, -0.5, similarity) for similarity in (2.0, 0.5))
    # The frame of the photograph's box, below the titles, at the left.
    frame = np.s_[250:350, 32:128]
    assert (unlike[frame] == ink).all(axis=2).sum() > (like[frame] == ink).all(axis=2).sum()


def test_the_region_that_was_seen_has_a_thin_frame(classifier: Classifier, photograph: Path) -> None:
    prediction = classifier.predict(photograph, top_k=1)
    level = next(level for level in prediction.levels if level.evidence)

    def drawn(seen: tuple[int, int, int, int] | None) -> NDArray[np.int64]:
        piece = level.evidence[0].model_copy(update={"seen": seen, "box": (90, 70, 110, 80)})
        shown = level.model_copy(update={"evidence": [piece], "against": []})
        figure = explain_figure(
            classifier.bundle, decode(photograph), prediction.model_copy(update={"levels": [shown]})
        )
        return np.asarray(figure).astype(np.int64)

    # Only the frame differs below the titles: in the small photograph, 160 pixels wide for 200.
    changed = (drawn((50, 25, 150, 125)) != drawn(None)).any(axis=2)[226:]
    rows, columns = np.nonzero(changed)
    assert columns.max() - columns.min() == pytest.approx(80, abs=2)
    assert rows.max() - rows.min() == pytest.approx(80, abs=2)
    assert changed.sum() < 2 * 4 * 80 + 20
