"""An answer as HTML: what a notebook shows, and a page that needs nothing but itself."""

from __future__ import annotations

import doctest
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from protoserve.pages import answer as module
from protoserve.pages.answer import answer_page, brief, notebook_html
from protoserve.pages.crops import Pictures, webp
from protoserve.schema import (
    Alternative,
    Evidence,
    EvidenceSource,
    ImageSize,
    Level,
    ModelReference,
    Prediction,
    RestrictionEffect,
    Unrestricted,
)


def piece(prototype: int, contribution: float, similarity: float = 2.0) -> Evidence:
    source = EvidenceSource(image="train/<Apple>/a_1.png", box=(1, 2, 3, 4))
    return Evidence(
        prototype=prototype,
        similarity=similarity,
        usual=1.0,
        weight=1.0,
        contribution=contribution,
        box=(40, 20, 70, 50),
        source=source,
    )


@pytest.fixture
def prediction() -> Prediction:
    """A level with evidence for and against it, an only child, and a guess."""
    levels = [
        Level(
            level=1,
            node="R&D",
            label="R&D",
            probability=0.98,
            conditional=0.98,
            logit=2.0,
            prior=0.5,
            rest=0.25,
            sufficient=2,
            evidence_share=0.8,
            evidence=[piece(7, 1.5), piece(8, 0.25, similarity=0.5)],
            against=[piece(9, -0.5)],
            alternatives=[Alternative(node="Other", label="Other", probability=0.02)],
        ),
        Level(level=2, node="R&D/<b>x", label="<b>x", probability=0.98, conditional=1.0, forced=True),
        Level(level=3, node="R&D/<b>x/y", label="y", probability=0.3, conditional=0.31, logit=1.0, prior=1.0, rest=0.0),
    ]
    return Prediction(
        model=ModelReference(name="toy", version="sha256:0123456789abcdef"),
        image=ImageSize(width=120, height=80),
        path=["R&D", "<b>x", "y"],
        known_through_level=3,
        levels=levels,
        without=[12],
        restriction=RestrictionEffect(
            excluded=0.6, contradicted=True, unrestricted=Unrestricted(path=["Lemon"], probability=0.6)
        ),
    )


@pytest.fixture
def pictures() -> Pictures:
    patch = webp(Image.new("RGB", (48, 48), (10, 120, 60)))
    return Pictures(Image.new("RGB", (120, 80), (200, 40, 40)), lambda prototype: None if prototype == 9 else patch)


class Shown(HTMLParser):
    """The tags, their attributes and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(module).failed == 0


def test_the_sum_is_told_piece_by_piece(prediction: Prediction, pictures: Pictures) -> None:
    shown = Shown(answer_page(prediction, pictures, "photo.jpg"))
    for expected in (
        "<b>x",
        "98.0 %",
        "+1.50",
        "1.00 × (2.00 − 1.00)",
        "looks less than usual like",
        "−0.50",
        "All other prototypes",
        "2 pieces suffice",
        "Shown: 80 % of what speaks for it.",
        "else Other 2.0 %",
        "The only child of its parent",
        "y 30.0 % · a guess",
        "As if prototype 12 were switched off.",
        "60.0 % lies outside of it",
        "Without the restriction: Lemon, 60.0 %.",
        "photo.jpg, 120 × 80 pixels. toy sha256:0123456789ab",
    ):
        assert expected in shown.text
    assert ["open" in attributes for tag, attributes in shown.tags if tag == "details"] == [True, False, False]


def test_a_page_needs_nothing_but_itself(prediction: Prediction, pictures: Pictures) -> None:
    html = answer_page(prediction, pictures, "<photo>.jpg")
    shown = Shown(html)
    assert "script" not in {tag for tag, _ in shown.tags} and "<b>x" not in html
    sources = [str(attributes["src"]) for tag, attributes in shown.tags if tag == "img"]
    # A crop and a patch for each piece, but no patch for prototype 9.
    assert len(sources) == 5 and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert all(attributes["alt"] for tag, attributes in shown.tags if tag == "img")
    assert html.count("--photograph: url(data:") == 1 and "http:" not in html and "https:" not in html


def test_frames_lie_where_the_boxes_do(prediction: Prediction, pictures: Pictures) -> None:
    shown = Shown(answer_page(prediction, pictures, "a.png"))
    frames = [attributes for tag, attributes in shown.tags if tag == "i" and "frame" in str(attributes.get("class"))]
    # Two on the photograph, the strongest last, and one on each of the three crops.
    assert [attributes["class"] for attributes in frames] == [
        "frame evidence absent",
        "frame evidence",
        "frame evidence",
        "frame evidence absent",
        "frame against",
    ]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", str(frames[1]["style"]))]
    assert shares == [25.0, 41.67, 37.5, 33.33]
    # A crop shows twice its box.
    assert re.findall(r"([\d.]+)%", str(frames[2]["style"])) == ["25.00"] * 4


def test_without_pictures_there_are_boxes_and_numbers(prediction: Prediction) -> None:
    html = prediction._repr_html_()
    assert html == notebook_html(prediction, None)
    shown = Shown(html)
    assert "img" not in {tag for tag, _ in shown.tags} and "40, 20 – 70, 50" in shown.text
    assert "+1.50" in shown.text and "1, 2 – 3, 4 of its picture" in shown.text


def test_the_repr_is_one_short_line(prediction: Prediction) -> None:
    assert repr(prediction) == str(prediction) == brief(prediction)
    assert "\n" not in repr(prediction) and len(repr(prediction)) < 250
    assert repr(prediction).startswith("<Prediction R&D › <b>x › y 30.0 %: ")
