"""What is said about an answer. `tests/service/page/test_script.py` compares it with what browsers say."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from protoserve.pages import words
from protoserve.pages.words import (
    contrast_waterfall,
    extent,
    headline,
    is_absence,
    likeness,
    percent,
    readable,
    rounded,
    waterfall,
)
from protoserve.schema import (
    Answer,
    Contrast,
    ContrastEvidence,
    Evidence,
    EvidenceSource,
    ImageSize,
    Level,
    ModelReference,
    Prediction,
)


def piece(contribution: float, similarity: float = 2.0, usual: float = 1.0) -> Evidence:
    return Evidence(
        prototype=3, similarity=similarity, usual=usual, weight=1.0, contribution=contribution, box=(0, 0, 8, 8)
    )


def prediction(*levels: tuple[str, float], known: int | None = None, answer: Answer | None = None) -> Prediction:
    nodes = ["/".join(label for label, _ in levels[: index + 1]) for index in range(len(levels))]
    return Prediction(
        model=ModelReference(name="m", version="v"),
        image=ImageSize(width=30, height=20),
        path=[label for label, _ in levels],
        known_through_level=known,
        answer=answer,
        levels=[
            Level(
                level=index + 1, node=nodes[index], label=label, probability=value, conditional=1.0, evidence=[piece(1)]
            )
            for index, (label, value) in enumerate(levels)
        ],
    )


FRUIT, APPLE, SMITH = ("Fruit", 0.98), ("Apple", 0.9), ("Granny-Smith", 0.8)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize(
    ("shown", "levels", "title", "reason"),
    [
        (prediction(FRUIT, APPLE, SMITH, known=3), 3, "Granny Smith", "80.0 % sure"),
        (prediction(FRUIT, APPLE, SMITH, known=2), 2, "Apple", "None of the kinds of Apple I know"),
        (prediction(FRUIT, APPLE, SMITH, known=0), 0, "Nothing I know", "Unlike all that I learned from"),
        (prediction(FRUIT, ("Gala", 0.4), known=2), 1, "Fruit", "Gala, 40.0 %, has less than even odds"),
        (
            prediction(FRUIT, APPLE, answer=Answer(node="Fruit", level=1, precision=0.95, reason="stops: below 0.95")),
            1,
            "Fruit",
            "Stops at Fruit: below 95 %. The closest is Apple, 90.0 %.",
        ),
        (
            prediction(FRUIT, answer=Answer(node="Fruit", level=1, precision=0.975, reason="confident")),
            1,
            "Fruit",
            "98.0 % sure; of such answers, at least 97.5 % are right",
        ),
    ],
)
def test_the_headline_claims_no_more_than_holds(shown: Prediction, levels: int, title: str, reason: str) -> None:
    found = extent(shown)
    assert (found.levels, found.title) == (levels, title) and reason in found.reason
    assert found.sure is (levels == len(shown.levels))
    assert headline(shown).startswith(f"{title} — ") and not headline(shown).endswith(".")


def test_an_answer_by_what_the_picture_lacks_is_not_told_with_confidence() -> None:
    level = Level(level=1, node="A", label="A", probability=0.9, conditional=0.9, evidence=[piece(1), piece(1.5, 0.5)])
    found = extent(prediction(("A", 0.9)).model_copy(update={"levels": [level]}))
    assert not found.sure and found.reason.endswith("more by what the picture lacks than by what it shows")


def test_no_probability_is_told_as_none_or_as_certain() -> None:
    told = [percent(value) for value in (1.0, 0.99999, 0.9996, 0.5, 0.0004, 0.00002, 0.0)]
    assert told == ["100.00 %", "> 99.99 %", "99.96 %", "50.0 %", "0.04 %", "< 0.01 %", "0.00 %"]


def test_less_than_usual_is_no_likeness() -> None:
    assert not is_absence(piece(1.0)) and likeness(piece(1.0)) == "looks like"
    missing = piece(0.3, similarity=0.6)
    assert is_absence(missing) and likeness(missing) == "looks less than usual like"


def test_labels_become_words() -> None:
    assert readable("Granny-Smith__x") == "Granny Smith x"
    assert str(rounded(-0.001)) == "0.0"


def test_the_waterfall_leads_from_nothing_to_the_logit() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        told = {kind: sign * generator.exponential(0.5, 6) for kind, sign in (("evidence", 1), ("against", -1))}
        pieces = {kind: [piece(value) for value in values.tolist()] for kind, values in told.items()}
        pieces["evidence"].append(piece(0.004))
        logit, prior = float(generator.normal(0, 5)), float(generator.normal())
        level = Level(level=1, node="A", label="A", probability=1, conditional=1, logit=logit, prior=prior, **pieces)
        *parts, score = waterfall(level)
        assert parts[0].kind == "prior" and parts[-1].kind == "rest"
        assert [one.end for one in parts[:-1]] == [other.start for other in parts[1:]]
        assert score.value == parts[-1].end == pytest.approx(logit, abs=0.005 + 1e-9)
        # A piece that rounds to nothing has no step.
        assert [step.number for step in parts if step.piece] == list(range(1, len(parts) - 1))
    assert waterfall(Level(level=1, node="A", label="A", probability=1, conditional=1)) == []


def test_a_contrast_is_a_waterfall_from_the_priors_to_the_lead() -> None:
    source = EvidenceSource(image="a.png", box=(0, 0, 8, 8))
    pieces = [
        ContrastEvidence(
            prototype=0,
            child="A",
            similarity=1,
            usual=0,
            found=True,
            predicted=one,
            instead=other,
            difference=one - other,
            box=(0, 0, 1, 1),
            source=source,
        )
        for one, other in ((1.0, 0.5), (0.2, 0.9), (3.0, 1.0))
    ]
    contrast = Contrast(
        node="B", relation="beside", predicted="A", instead="B", logit_difference=2.5, prior_difference=0.5,
        rest=0.2, evidence=pieces,
    )  # fmt: skip
    steps = contrast_waterfall(contrast)
    assert [step.value for step in steps] == [0.5, 2.0, 0.5, -0.7, 0.2, 2.5]
    assert contrast_waterfall(Contrast(node="B", relation="below")) == []
