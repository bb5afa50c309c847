"""The page's flows over a model of real photographs: not square, of classes at uneven depths, trained as a user would.

The tests of the flows are those of the hand-made bundle; here they find other pictures and another model.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.e2e import test_page_use, test_service_page
from tests.e2e.page_browser import CHROMIUM, asked, shoot, wait_for_answer
from tests.e2e.serving import Server, serving
from tests.e2e.test_service_page import active_level, evidence

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes minutes: make test-faults"),
]

CLASSES = (
    "Fruit/Apple/Granny-Smith",
    "Fruit/Apple/Royal-Gala",
    "Fruit/Lemon",
    "Vegetables/Garlic",
    "Vegetables/Pepper/Red-Bell-Pepper",
    "Vegetables/Pepper/Yellow-Bell-Pepper",
)
PICTURES = {"train": 6, "val": 2}
SETTINGS = {"data.views": 2, "joint.epochs": 2, "anchored.epochs": 1, "model.prototypes_per_child": 4}


@pytest.fixture(scope="session")
def grocery() -> Path:
    folder = Path(os.environ.get("PROTOSERVE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    for needed in (folder / "grocery-store", folder / "weights" / "mobilenet_v2_imagenet.pth"):
        if not needed.exists():
            pytest.skip(f"there is no {needed}; PROTOSERVE_DATA names the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def photographs_bundle(grocery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a few classes: frozen backbone, few pictures."""
    from export.bundling import export_bundle
    from protoserve.run.folder import open_run
    from training.config import read_config
    from training.running import train

    home = tmp_path_factory.mktemp("photographs")
    for split, count in PICTURES.items():
        for leaf in CLASSES:
            files = sorted((grocery / "grocery-store" / split / leaf).glob("*.jpg"))[:count]
            (home / "data" / split / leaf).mkdir(parents=True)
            for file in files:
                shutil.copy(file, home / "data" / split / leaf)
    weights = {"model.weights": str(grocery / "weights" / "mobilenet_v2_imagenet.pth")}
    recipe = Path(__file__).resolve().parents[2] / "training" / "configs" / "frozen.yaml"
    config = read_config(recipe, SETTINGS | weights)
    console = Console(quiet=True)
    train(config, home / "data", home / "run", linear=False, resume=False, device="cpu", console=console)
    export_bundle(open_run(home / "run"), home / "bundle", data=home / "data")
    return home / "bundle"


@pytest.fixture(scope="session")
def page_server(photographs_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with serving(photographs_bundle, tmp_path_factory.mktemp("photographs-page")) as found:
        yield found


@pytest.fixture(scope="session")
def photograph(grocery: Path) -> Path:
    """A picture that the model did not learn from, higher than wide."""
    for file in sorted((grocery / "grocery-store" / "test" / CLASSES[0]).glob("*.jpg")):
        with Image.open(file) as picture:
            if picture.height > picture.width:
                return file
    pytest.fail("every picture is square")


test_every_level_shows_its_evidence = (
    test_service_page.test_every_level_shows_its_evidence_and_a_sum_that_ends_at_the_score
)
test_a_piece_left_out_changes_the_sum = test_service_page.test_a_piece_left_out_changes_the_sum_at_once
test_a_heat_map_is_drawn = test_service_page.test_a_heat_map_is_drawn_for_the_piece_that_is_pointed_at
test_an_alternative_is_told = test_service_page.test_an_alternative_is_told_by_what_tells_it_apart
test_the_keyboard_is_enough = test_page_use.test_the_keyboard_is_enough


@pytest.mark.parametrize("view", ["dark", "phone"])
def test_axe_finds_nothing(browser: Any, page_server: Server, photograph: Path, view: str) -> None:
    test_page_use.test_axe_finds_nothing(browser, page_server, photograph, view)


def square_around(box: list[float], width: int, height: int) -> tuple[float, float, float]:
    """Left, top and side of the crop that shows a box: twice the box, inside the picture."""
    left, top, right, bottom = box
    side = min(max(2 * max(right - left, bottom - top), min(width, height) / 12, 4), min(width, height))
    x = max(0.0, min(width - side, (left + right - side) / 2))
    return x, max(0.0, min(height - side, (top + bottom - side) / 2)), side


@pytest.mark.parametrize("leaf", ["Fruit/Apple/Royal-Gala", "Fruit/Lemon", "Vegetables/Garlic"])
def test_levels_crops_and_prototypes_of_a_photograph_are_those_of_the_answer(
    fresh: Any, page_server: Server, grocery: Path, leaf: str
) -> None:
    file = min((grocery / "grocery-store" / "test" / leaf).glob("*.jpg"))
    told = asked(page_server, file.read_bytes())
    fresh.set_input_files("#file", str(file))
    wait_for_answer(fresh, file.name)
    fresh.mouse.move(0, 0)
    shoot(fresh, f"photograph-{file.stem}", full_page=True)
    labels = [level["label"].replace("-", " ") for level in told["levels"]]
    assert fresh.locator("#levels [role=tab] span").all_inner_texts() == labels
    assert fresh.inner_text("#title") in (*labels, "Nothing I know", "Not sure")
    pieces = evidence(told["levels"][active_level(fresh)])
    links = fresh.eval_on_selector_all(".pair img", "all => all.map((image) => image.src)")
    assert links == [f"{page_server.address}/v1/prototypes/{piece['prototype']}/image?view=patch" for piece in pieces]
    crops = fresh.eval_on_selector_all(".pair canvas", "all => all.map((canvas) => canvas.toDataURL())")
    with Image.open(file) as picture:
        for piece, crop in zip(pieces, crops, strict=True):
            x, y, side = square_around(piece["box"], picture.width, picture.height)
            shown = Image.open(io.BytesIO(base64.b64decode(crop.partition(",")[2]))).convert("RGB")
            region = (x, y, x + side, y + side)
            expected = picture.convert("RGB").resize(shown.size, Image.Resampling.BILINEAR, box=region)
            # All but the frame, which covers a small part.
            difference = np.abs(np.asarray(shown, dtype=float) - np.asarray(expected, dtype=float)).max(axis=2)
            assert np.quantile(difference, 0.6) < 12, piece


def test_frames_lie_around_the_boxes_of_a_photograph(fresh: Any, page_server: Server) -> None:
    told = asked(page_server, fresh.given.read_bytes())
    pieces = [piece for piece in evidence(told["levels"][active_level(fresh)]) if piece["contribution"] > 0]
    frame = fresh.locator("#frame").bounding_box()
    scale = frame["height"] / told["image"]["height"]
    assert told["image"]["height"] > told["image"]["width"]
    found = {
        int(mark.get_attribute("data-piece")): [
            float(mark.locator(".halo").get_attribute(name)) for name in ("x", "y", "width", "height", "stroke-width")
        ]
        for mark in fresh.locator("#overlay .mark:has(.halo)").all()
    }
    for number, piece in enumerate(pieces, start=1):
        x, y, width, height, stroke = found[number]
        inner = (x + stroke / 2, y + stroke / 2, x + width - stroke / 2, y + height - stroke / 2)
        assert inner == pytest.approx([edge * scale for edge in piece["box"]], abs=0.75)
    # Pointing at a piece shows what the network saw for it, which is more than its box.
    fresh.locator(".pair").first.focus()
    assert fresh.locator("#overlay .seen.over").count() == 1
    assert float(fresh.locator("#overlay .seen.over").get_attribute("height")) > found[1][3]


def test_nothing_broke_the_pages_own_policy_or_left_the_service(page: Any) -> None:
    assert not page.complaints
