"""What the service's page at `/` shows, in a real browser, compared with the service's own answer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoserve.feedback.curation import CurationLine
from tests.e2e.page_browser import asked, photographs, shoot, wait_for, wait_for_answer
from tests.e2e.serving import Server


def evidence(level: dict[str, Any]) -> list[dict[str, Any]]:
    """The pieces of evidence that have a place on the page: those that do not round to 0."""
    return [piece for kind in ("evidence", "against") for piece in level[kind] if abs(piece["contribution"]) >= 0.005]


def figure(text: str) -> float:
    return float(text.replace("−", "-"))


def active_level(page: Any) -> int:
    tabs = "[...document.querySelectorAll('[role=tab]')]"
    return int(page.evaluate(f"{tabs}.findIndex((tab) => tab.ariaSelected === 'true')"))


# ---- numbers and places ----------------------------------------------------------------------------------------------


def test_every_level_shows_its_evidence_and_a_sum_that_ends_at_the_score(fresh: Any, answer: Any) -> None:
    tabs = fresh.locator("#levels [role=tab]")
    assert tabs.count() == len(answer["levels"])
    for number, level in enumerate(answer["levels"]):
        tabs.nth(number).click()
        assert tabs.nth(number).inner_text().startswith(level["label"].replace("-", " "))
        if level["logit"] is None:
            assert fresh.locator(".step").count() == 0
            continue
        shown = fresh.locator(".piece")
        assert shown.count() == len(evidence(level))
        for text, piece in zip(shown.all_inner_texts(), evidence(level), strict=True):
            sign = "−" if piece["contribution"] < 0 else "+"
            assert f"{sign}{abs(piece['contribution']):.2f}" in text
            absent = piece["similarity"] < piece["usual"]
            assert ("less than usual like" if absent else "looks like") in text.replace("\n", " ")
            assert f"prototype {piece['prototype']}" in text
        *parts, score = [figure(text) for text in fresh.locator(".step .value").all_inner_texts()]
        assert sum(parts) == pytest.approx(score, abs=1e-9)
        assert score == pytest.approx(level["logit"], abs=0.005 + 1e-9)
    assert any(level["against"] for level in answer["levels"])


def test_the_headline_says_how_far_the_answer_goes(fresh: Any, answer: Any) -> None:
    known = answer["known_through_level"]
    likely = sum(level["probability"] >= 0.5 for level in answer["levels"])
    held = min(known, likely)
    expected = answer["levels"][held - 1]["label"] if held else ("Nothing I know" if known <= likely else "Not sure")
    assert fresh.inner_text("#title") == expected.replace("-", " ")
    assert fresh.locator("#levels .open").count() == len(answer["levels"]) - held
    assert fresh.inner_text("#live").startswith(expected.replace("-", " "))


def test_a_piece_left_out_changes_the_sum_at_once(fresh: Any) -> None:
    before = figure(fresh.inner_text(".score .value"))
    piece = fresh.locator(".piece").first
    value = figure(piece.locator(".value").inner_text())
    piece.locator(".count").click()
    assert piece.locator(".count").get_attribute("aria-checked") == "false"
    assert figure(fresh.inner_text(".score .value")) == pytest.approx(before - value, abs=1e-9)
    piece.locator(".count").click()
    assert figure(fresh.inner_text(".score .value")) == before


@pytest.mark.parametrize("name", ["turned", "wide", "high", "huge", "tiny"])
def test_frames_lie_around_the_boxes(fresh: Any, page_server: Server, name: str) -> None:
    picture = photographs()[name]
    told = asked(page_server, picture)
    fresh.set_input_files("#file", {"name": f"{name}.jpg", "mimeType": "image/jpeg", "buffer": picture})
    wait_for_answer(fresh, f"{name}.jpg")
    fresh.mouse.move(0, 0)
    number = active_level(fresh)
    level = told["levels"][number]
    frame = fresh.locator("#frame").bounding_box()
    longer = "width" if told["image"]["width"] >= told["image"]["height"] else "height"
    scale = frame[longer] / told["image"][longer]
    shape = fresh.eval_on_selector("#canvas", "canvas => [canvas.width, canvas.height]")
    assert shape[0] / shape[1] == pytest.approx(told["image"]["width"] / told["image"]["height"], rel=0.02)
    supporting = [piece for piece in level["evidence"] if piece["contribution"] >= 0.005]
    strokes = {
        mark.get_attribute("data-piece"): mark.locator(".halo")
        for mark in fresh.locator("#overlay .mark:has(.halo)").all()
    }
    assert set(strokes) == {str(index + 1) for index in range(len(supporting))}
    for index, piece in enumerate(supporting):
        found = {side: float(strokes[str(index + 1)].get_attribute(side)) for side in ("x", "y", "width", "height")}
        stroke = float(strokes[str(index + 1)].get_attribute("stroke-width"))
        left, top, right, bottom = [edge * scale for edge in piece["box"]]
        # The inner edge of the stroke: no pixel of the box is hidden.
        inner = (found["x"] + stroke / 2, found["y"] + stroke / 2, found["width"] - stroke, found["height"] - stroke)
        assert inner == pytest.approx((left, top, right - left, bottom - top), abs=0.75)
    shoot(fresh, f"picture-{name}")


def test_a_heat_map_is_drawn_for_the_piece_that_is_pointed_at(fresh: Any) -> None:
    fresh.check("#heat-on")
    wait_for(fresh, "!document.getElementById('heat').hidden")
    fresh.locator(".pair").first.focus()
    first = fresh.eval_on_selector("#heat", "canvas => canvas.toDataURL()")
    fresh.locator(".pair").nth(1).focus()
    assert fresh.eval_on_selector("#heat", "canvas => canvas.toDataURL()") != first
    shoot(fresh, "heat")
    fresh.uncheck("#heat-on")
    wait_for(fresh, "document.getElementById('heat').hidden")


# ---- pictures come in ------------------------------------------------------------------------------------------------


def test_a_picture_that_browsers_do_not_draw_is_shown_as_the_network_got_it(fresh: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (120, 80), (200, 30, 40)).save(file, "TIFF")
    fresh.set_input_files("#file", {"name": "scan.tif", "mimeType": "image/tiff", "buffer": file.getvalue()})
    wait_for_answer(fresh, "scan.tif")
    assert "can't draw this format" in fresh.inner_text("#note")
    middle = fresh.eval_on_selector(
        "#canvas", "canvas => [...canvas.getContext('2d').getImageData(60, 40, 1, 1).data].slice(0, 3)"
    )
    assert np.allclose(middle, (200, 30, 40), atol=2)
    assert fresh.locator(".piece").count()


def test_an_error_says_what_to_do_and_keeps_the_answer(fresh: Any) -> None:
    title, pieces = fresh.inner_text("#title"), fresh.locator(".piece").count()

    def refused(name: str, kind: str, content: bytes) -> str:
        fresh.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})
        wait_for(fresh, "!document.getElementById('message').hidden")
        assert fresh.inner_text("#title") == title and fresh.locator(".piece").count() == pieces
        text: str = fresh.inner_text("#message")
        return text

    assert "letter.pdf is not a picture" in refused("letter.pdf", "application/pdf", b"%PDF-1.7")
    assert "empty.jpg is empty" in refused("empty.jpg", "image/jpeg", b"")
    assert "rubbish" not in refused("rubbish.jpg", "image/jpeg", b"no picture at all")
    dropped = "new DragEvent('drop', {dataTransfer: Object.assign(new DataTransfer())})"
    fresh.evaluate(
        f"(() => {{ const event = {dropped}; event.dataTransfer.setData('text/uri-list', 'a'); "
        "document.dispatchEvent(event); })()"
    )
    assert "That is an address" in fresh.inner_text("#message")
    fresh.complaints[:] = [line for line in fresh.complaints if "status of 4" not in line]


def test_a_service_that_does_not_answer_can_be_asked_again(fresh: Any, photograph: Path) -> None:
    fresh.route("**/v1/predict?*", lambda route: route.abort())
    fresh.set_input_files("#file", {"name": "again.jpg", "mimeType": "image/jpeg", "buffer": photograph.read_bytes()})
    wait_for(fresh, "!document.getElementById('message').hidden")
    assert "did not answer" in fresh.inner_text("#message")
    fresh.unroute("**/v1/predict?*")
    fresh.click("#message button")
    wait_for_answer(fresh, "again.jpg")
    assert fresh.is_hidden("#message")
    fresh.complaints[:] = [line for line in fresh.complaints if "ERR_FAILED" not in line]


def test_several_pictures_are_answered_one_by_one(fresh: Any, photograph: Path) -> None:
    pictures = [
        {"name": f"{name}.jpg", "mimeType": "image/jpeg", "buffer": photographs()[name]} for name in ("turned", "wide")
    ]
    fresh.set_input_files("#file", [*pictures, {"name": "not.txt", "mimeType": "text/plain", "buffer": b"text"}])
    wait_for(fresh, "document.querySelectorAll('#strip button').length === 3")
    wait_for(fresh, "![...document.querySelectorAll('#strip span')].some((title) => title.textContent === '…')")
    assert fresh.locator("#strip button").nth(2).inner_text() == "no answer"
    shoot(fresh, "strip")
    fresh.locator("#strip button").nth(1).click()
    wait_for_answer(fresh, "wide.jpg")


# ---- acting on the evidence ------------------------------------------------------------------------------------------


def test_an_alternative_is_told_by_what_tells_it_apart(fresh: Any, page_server: Server) -> None:
    button = fresh.locator(".others button").first
    node = button.get_attribute("title")
    contrast = asked(page_server, fresh.given.read_bytes(), contrast=node)["contrast"]
    predicted = contrast["predicted"].rpartition("/")[2].replace("-", " ")
    button.click()
    fresh.wait_for_selector(".heading")
    assert fresh.inner_text(".heading").startswith(f"Why {predicted} and not")
    *parts, lead = [figure(text) for text in fresh.locator(".step .value").all_inner_texts()]
    assert sum(parts) == pytest.approx(lead, abs=1e-9)
    assert lead == pytest.approx(contrast["logit_difference"], abs=0.005 + 1e-9)
    told = [*contrast["evidence"], *contrast["missing"]]
    assert fresh.locator(".piece").count() == sum(abs(piece["difference"]) >= 0.005 for piece in told)
    fresh.click("#panel .actions button")
    assert fresh.locator(".score .name").inner_text() == "Score"


def test_an_answer_without_a_piece_is_asked_for_and_kept_as_a_curation(fresh: Any, page_server: Server) -> None:
    first = fresh.locator(".piece").first
    prototype = int(first.locator("a").inner_text().removeprefix("prototype "))
    first.locator(".count").click()
    fresh.fill("#off input", "the background")
    with fresh.expect_download() as download:
        fresh.click("#off button:nth-of-type(2)")
    [line] = [CurationLine.model_validate_json(line) for line in download.value.path().read_text().splitlines()]
    assert (line.prototype, line.reason) == (prototype, "the background")
    fresh.click("#off button:nth-of-type(1)")
    fresh.wait_for_selector(".supposed")
    expected = asked(page_server, fresh.given.read_bytes(), without=prototype)
    assert line.model == expected["model"]["version"]
    assert f"prototype {prototype} were switched off" in fresh.inner_text(".supposed")
    number = active_level(fresh)
    assert figure(fresh.inner_text(".score .value")) == pytest.approx(expected["levels"][number]["logit"], abs=0.006)
    fresh.click("#panel button:text('Count all again')")
    wait_for(fresh, "!document.querySelector('.supposed')")


def test_a_restriction_is_kept_in_the_address_and_told(fresh: Any, page_server: Server) -> None:
    expected = asked(page_server, fresh.given.read_bytes(), allow="Animal")
    fresh.click("#options summary")
    fresh.fill("[data-option=allow]", "Animal")
    fresh.dispatch_event("[data-option=allow]", "change")
    wait_for(fresh, "document.querySelector('[role=tab] span').textContent === 'Animal'")
    assert "allow=Animal" in fresh.url
    assert fresh.locator("[role=tab]").count() == len(expected["levels"])
    assert (expected["restriction"]["unrestricted"] is not None) == (
        "Without the restriction" in fresh.inner_text("#panel")
    )
    fresh.fill("[data-option=allow]", "")
    fresh.dispatch_event("[data-option=allow]", "change")
    wait_for(fresh, "!location.hash.includes('allow')")


def test_nothing_broke_the_pages_own_policy_or_left_the_service(page: Any) -> None:
    assert not page.complaints
