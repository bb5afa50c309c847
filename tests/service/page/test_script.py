"""The functions of the page's script that need no browser, in Node."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import asdict
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from protoserve.images.geometry import InputRule, geometry_of
from protoserve.pages import words
from protoserve.schema import Answer, Evidence, ImageSize, Level, ModelReference, Prediction
from service.page.assembly import FOLDER


def called(module: str, function: str, calls: list[list[Any]]) -> list[Any]:
    """What a function of a module returns for each list of arguments."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    script = (
        f'import {{ {function} }} from "{(FOLDER / module).as_uri()}.mjs";\n'
        f"console.log(JSON.stringify({json.dumps(calls)}.map((one) => {function}(...one))));"
    )
    command = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    returned: list[Any] = json.loads(done.stdout)
    return returned


# ---- the headline ----------------------------------------------------------------------------------------------------


def piece(contribution: float, similarity: float = 2.0, usual: float = 1.0) -> dict[str, Any]:
    return {"contribution": contribution, "similarity": similarity, "usual": usual}


def answer(*levels: tuple[str, float], known: int | None = None, **more: Any) -> dict[str, Any]:
    """A prediction with these labels and probabilities; each level has one piece of evidence, which was found."""
    told = [{"label": label, "probability": value, "evidence": [piece(1.0)], "against": []} for label, value in levels]
    return {"known_through_level": known, "levels": told, **more}


def promise(node: str | None, level: int, reason: str) -> dict[str, Any]:
    """How deep an answer goes at a precision of 0.95."""
    return {"node": node, "level": level, "precision": 0.95, "reason": reason}


FRUIT, APPLE, SMITH = ("Fruit", 0.98), ("Apple", 0.9), ("Granny-Smith", 0.8)


@pytest.mark.parametrize(
    ("prediction", "levels", "title", "reason"),
    [
        (answer(FRUIT, APPLE, SMITH, known=3), 3, "Granny Smith", "80.0 % sure"),
        (answer(FRUIT, APPLE, SMITH, known=2), 2, "Apple", "None of the kinds of Apple I know"),
        (answer(FRUIT, APPLE, SMITH, known=0), 0, "Nothing I know", "Unlike all that I learned from"),
        (answer(FRUIT, APPLE, SMITH), 3, "Granny Smith", "if it is of a class I know"),
        (answer(FRUIT, APPLE, ("Gala", 0.4), known=3), 2, "Apple", "Gala, 40.0 %, has less than even odds"),
        (answer(("Fruit", 0.4), ("Apple", 0.3), known=2), 0, "Not sure", "Fruit, 40.0 %, has less than even odds"),
        # A promise of precision goes before the odds.
        (
            answer(FRUIT, APPLE, SMITH, answer=promise("Fruit/Apple", 2, "stops: below 0.95")),
            2,
            "Apple",
            "Stops at Apple: below 95 %. The closest is Granny Smith, 80.0 %.",
        ),
        (answer(FRUIT, answer=promise(None, 0, "stops: below 0.95")), 0, "Not sure", "Stops at once: below 95 %"),
        (
            answer(FRUIT, answer=promise("Fruit", 1, "confident")),
            1,
            "Fruit",
            "98.0 % sure; of such answers, at least 95 % are right",
        ),
        (
            answer(FRUIT, APPLE, answer=promise("Fruit", 1, "stops: unknown below Fruit")),
            1,
            "Fruit",
            "None of the kinds of Fruit I know",
        ),
        (
            answer(FRUIT, APPLE, answer=promise("Fruit", 1, "stops: too few pictures for 0.95")),
            1,
            "Fruit",
            "Stops at Fruit: too few pictures for 95 %",
        ),
        # Nothing can be promised: the odds tell, as without a promise.
        (
            answer(FRUIT, known=1, answer=promise(None, 0, "stops: too few pictures for 0.95")),
            1,
            "Fruit",
            "98.0 % sure; too few pictures were held out to promise 95 %",
        ),
        (
            answer(FRUIT, ("Apple", 0.4), known=2, answer=promise(None, 0, "stops: too few pictures for 0.95")),
            1,
            "Fruit",
            "Apple, 40.0 %, has less than even odds",
        ),
    ],
)
def test_the_headline_claims_no_more_than_holds(
    prediction: dict[str, Any], levels: int, title: str, reason: str
) -> None:
    [found] = called("words", "extent", [[prediction]])
    assert (found["levels"], found["title"]) == (levels, title)
    assert reason in found["reason"]
    assert found["sure"] is (levels == len(prediction["levels"]))


def test_the_page_and_python_say_the_same() -> None:
    """A prediction told in a notebook or in a terminal has the page's words."""
    generator = np.random.default_rng(0)
    stops = (
        "confident",
        "stops: below 0.9",
        "stops: unknown below B",
        "stops: too few pictures for 0.9",
        "stops: as deep",
    )
    shown = []
    for _ in range(100):
        depth = int(generator.integers(1, 4))
        odds = np.sort(generator.uniform(0, 1, depth) ** 0.5)[::-1].tolist()
        levels = [
            Level(
                level=place + 1,
                node="/".join(["A-a", "B_b", "C"][: place + 1]),
                label=["A-a", "B_b", "C"][place],
                probability=value,
                conditional=1.0,
                evidence=[
                    Evidence(
                        prototype=0, weight=1.0, box=(0, 0, 1, 1), **piece(float(value), similarity=float(similar))
                    )
                    for value, similar in generator.uniform(0, 2, (2, 2)).tolist()
                ],
            )
            for place, value in enumerate(odds)
        ]
        held = int(generator.integers(0, depth + 1))
        reason = "confident" if held == depth else str(generator.choice(stops))
        told = Answer(node=levels[held - 1].node if held else None, level=held, precision=0.9, reason=reason)
        shown.append(
            Prediction(
                model=ModelReference(name="m", version="v"),
                image=ImageSize(width=1, height=1),
                path=[level.label for level in levels],
                known_through_level=None if generator.uniform() < 0.3 else int(generator.integers(0, depth + 1)),
                levels=levels,
                answer=told if generator.uniform() < 0.5 else None,
            )
        )
    parts: Any = {
        "answer": True,
        "known_through_level": True,
        "levels": {"__all__": {"label", "probability", "evidence"}},
    }
    found = called("words", "extent", [[one.model_dump(mode="json", include=parts)] for one in shown])
    assert found == [asdict(words.extent(one)) for one in shown]
    values = [[value] for value in (*generator.uniform(-3, 3, 50).tolist(), -0.001, 0.0)]
    for name in ("signed", "number"):
        assert called("words", name, values) == [getattr(words, name)(*value) for value in values]


def test_an_answer_by_what_the_picture_lacks_is_not_told_with_confidence() -> None:
    lacking = answer(("Fruit", 0.9))
    lacking["levels"][0]["evidence"] = [piece(1.0), piece(1.5, similarity=0.5)]
    [found] = called("words", "extent", [[lacking]])
    assert not found["sure"]
    assert found["reason"].endswith("more by what the picture lacks than by what it shows")


def test_no_probability_is_told_as_none_or_as_certain() -> None:
    told = called("words", "percent", [[value] for value in (1.0, 0.99999, 0.9996, 0.5, 0.0004, 0.00002, 0.0)])
    assert told == ["100.00 %", "> 99.99 %", "99.96 %", "50.0 %", "0.04 %", "< 0.01 %", "0.00 %"]


# ---- the sum ---------------------------------------------------------------------------------------------------------


def random_level(generator: np.random.Generator) -> dict[str, Any]:
    pieces = {
        kind: (sign * generator.exponential(0.5, 6)).tolist() for kind, sign in (("evidence", 1), ("against", -1))
    }
    level: dict[str, Any] = {kind: [piece(value) for value in values] for kind, values in pieces.items()}
    level["evidence"].append(piece(0.004))
    return {**level, "prior": float(generator.normal()), "logit": float(generator.normal(0, 5))}


def test_the_waterfall_leads_from_nothing_to_the_logit() -> None:
    generator = np.random.default_rng(0)
    levels = [random_level(generator) for _ in range(50)]
    for level, steps in zip(levels, called("words", "waterfall", [[level] for level in levels]), strict=True):
        *parts, score = steps
        assert parts[0]["kind"] == "prior" and parts[0]["from"] == 0 and parts[-1]["kind"] == "rest"
        assert all(one["to"] == other["from"] for one, other in pairwise(parts))
        for step in parts:
            assert math.isclose(step["to"] - step["from"], step["value"], abs_tol=1e-9)
        assert (score["from"], score["to"], score["value"]) == (0, parts[-1]["to"], parts[-1]["to"])
        assert math.isclose(score["value"], level["logit"], abs_tol=0.005 + 1e-9)
        # A piece that rounds to nothing has no step.
        assert [step["number"] for step in parts if "number" in step] == list(range(1, len(parts) - 1))
        assert all(step["value"] for step in parts if "number" in step)


def test_a_contrast_is_a_waterfall_from_the_priors_to_the_lead() -> None:
    generator = np.random.default_rng(1)

    def pieces(count: int) -> list[dict[str, Any]]:
        values = generator.normal(size=(count, 2)).tolist()
        return [
            {**piece(0), "prototype": index, "predicted": one, "instead": other, "difference": one - other}
            for index, (one, other) in enumerate(values)
        ]

    contrast: dict[str, Any] = {
        "predicted": "Fruit/Apple",
        "instead": "Fruit/Pear",
        "evidence": pieces(5),
        "missing": pieces(3),
    }
    told = sum(one["difference"] for kind in ("evidence", "missing") for one in contrast[kind])
    contrast |= {"prior_difference": 0.3, "rest": -0.2, "logit_difference": 0.3 + told - 0.2}
    [level] = called("words", "contrastLevel", [[contrast]])
    assert len(level["evidence"]) + len(level["against"]) == 8
    for kind, sign in (("evidence", 1), ("against", -1)):
        sizes = [sign * one["contribution"] for one in level[kind]]
        assert min(sizes) > 0 and sizes == sorted(sizes, reverse=True)
    [steps] = called("words", "waterfall", [[level]])
    assert steps[-1]["value"] == pytest.approx(contrast["logit_difference"], abs=0.005 + 1e-9)
    assert steps[-2]["value"] == pytest.approx(-0.2, abs=0.06)


# ---- places ----------------------------------------------------------------------------------------------------------


def test_a_crop_holds_its_box_and_lies_inside_the_picture() -> None:
    generator = np.random.default_rng(0)
    calls: list[list[Any]] = []
    for _ in range(200):
        width, height = generator.integers(8, 3000, 2).tolist()
        x, y = (
            sorted(generator.integers(0, width + 1, 2).tolist()),
            sorted(generator.integers(0, height + 1, 2).tolist()),
        )
        calls.append(
            [[x[0], y[0], max(x[1], x[0] + 1), max(y[1], y[0] + 1)], {"width": width + 1, "height": height + 1}]
        )
    for (box, size), square in zip(calls, called("geometry", "cropSquare", calls), strict=True):
        x, y, side = square["x"], square["y"], square["side"]
        assert x >= 0 and y >= 0 and x + side <= size["width"] + 1e-9 and y + side <= size["height"] + 1e-9
        if side >= 2 * max(box[2] - box[0], box[3] - box[1]) - 1e-9:
            assert x <= box[0] and y <= box[1] and x + side >= box[2] - 1e-9 and y + side >= box[3] - 1e-9
        else:
            assert side == min(size["width"], size["height"])


def test_the_inner_edge_of_a_frame_is_the_edge_of_its_box() -> None:
    [frame] = called("geometry", "frameAround", [[[8, 4, 16, 12], 0.5, 6]])
    assert frame == {"x": 4 - 3, "y": 2 - 3, "width": 4 + 6, "height": 4 + 6}


def test_numbers_of_frames_at_one_place_stand_apart() -> None:
    same = {"x": 10, "y": 10, "width": 2, "height": 2}
    [places] = called("geometry", "numberPlaces", [[[same] * 5, 10, {"width": 300, "height": 200}]])
    for index, one in enumerate(places):
        assert all(math.dist(one, other) >= 20 for other in places[:index])


def test_a_cell_that_adds_nothing_does_not_glow() -> None:
    """The scale of the heat map is that of logits, the same for every map."""
    strengths = [-1.0, 0.0, 0.05, 0.5, 1.0, 7.0]
    colours = dict(zip(strengths, called("heat", "heatColour", [[value] for value in strengths]), strict=True))
    assert colours[-1.0][3] == colours[0.0][3] == 0
    assert 0 < colours[0.05][3] < 90 and sum(colours[0.05][:3]) < 250
    assert colours[1.0] == colours[7.0] and sum(colours[1.0][:3]) > 600
    assert colours[0.05][3] < colours[0.5][3] < colours[1.0][3]


RULES = [InputRule(height=96, width=64, resize=resize, share=0.875) for resize in ("stretch", "crop", "pad")]
SIZES = [(640, 480), (480, 640), (64, 96), (1000, 20), (21, 1000)]
# Side, step and start of the tiles, and how many rows and columns of them there are.
TILES = [(None, None, 0, 4, 4), (32, 32, 0, 3, 2), (32, 16, 0, 5, 3), (64, 16, 0, 3, 1), (19, 8, -9, 12, 8)]


def test_heat_maps_lie_where_the_model_saw_the_picture() -> None:
    """The centre of each cell, on the page, is the centre of its cell or tile in the sender's picture."""
    cases = list(product(RULES, SIZES, TILES))
    asked = [
        [
            {"tile": tile, "tile_step": step, "tile_start": first},
            rule.model_dump(),
            {"width": width, "height": height},
            rows,
            columns,
        ]
        for rule, (width, height), (tile, step, first, rows, columns) in cases
    ]
    regions = called("geometry", "mapRegion", asked)
    for (rule, (width, height), (tile, step, first, rows, columns)), region in zip(cases, regions, strict=True):
        geometry = geometry_of(width, height, rule)
        for axis, target, scale, offset, cells in (
            ("x", rule.width, geometry.scale_x, geometry.offset_x, columns),
            ("y", rule.height, geometry.scale_y, geometry.offset_y, rows),
        ):
            found = region[axis]
            start, length, before = found["start"], found["length"], found["before"]
            if tile is None or step is None:
                centres = [target * (cell + 0.5) / cells for cell in range(cells)]
            else:
                centres = [first + cell * step + tile / 2 for cell in range(cells)]
            drawn = before + cells + found["after"]
            assert np.allclose(found["seen"], [offset, scale * target])
            for cell, centre in enumerate(centres):
                placed = start + length * (cell + before + 0.5) / drawn
                assert math.isclose(placed, offset + scale * centre, abs_tol=1e-6), (rule.resize, width, tile, step)
            # Nothing that the model saw stays without a value.
            assert start <= offset + 1e-6 and start + length >= offset + scale * target - 1e-6


# ---- the request as Python -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("top_k", "5", "top_k=5"),
        ("maps", "heat", 'maps="heat"'),
        ("precision", "0.95", "precision=0.95"),
        ("without", "12,17", "without=[12, 17]"),
        ("without", "12", "without=[12]"),
        ("allow", "Fruit/Apple, Garlic", 'allow=["Fruit/Apple","Garlic"]'),
        ("depth", "3,Fruit/Apple:2", 'depth={"": 3, "Fruit/Apple": 2}'),
        ("prior", "Fruit:0.5", 'prior={"Fruit": 0.5}'),
        ("list", "winter", 'list="winter"'),
    ],
)
def test_an_option_is_a_keyword_of_the_client(name: str, value: str, code: str) -> None:
    assert called("words", "pythonArgument", [[name, value]]) == [code]
