"""Answers: where they stop, and why they say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protoserve.bundle.folder import read_bundle
from protoserve.inference.answering import Answering, answers
from protoserve.inference.classifier import load
from protoserve.promise.threshold import Threshold
from protoserve.restriction import Restriction, restriction_of, unrestricted
from protoserve.schema import Answer
from protoserve.taxonomy import Taxonomy
from tests.promises import promising, sure_above

TREE = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Garlic"])
GALA = TREE.path_at_level[TREE.index["Fruit/Apple/Gala"]]


def answer(
    probability: tuple[float, ...],
    *,
    known: tuple[bool, ...] | None = None,
    least: float | None = 0.8,
    restriction: Restriction | None = None,
    path: np.ndarray[tuple[int], np.dtype[np.int64]] = GALA,
    images: int = 500,
) -> Answer:
    padded = np.log(np.array([probability + (1.0,) * (3 - len(probability))]))
    threshold = Threshold(least, images, 0, 0, least_images=72)
    limits = None if known is None else [list(known)]
    [found] = answers(path[None], padded, limits, restriction or unrestricted(TREE), 0.95, threshold)
    return found


@pytest.mark.parametrize(
    ("found", "node", "reason"),
    [
        (answer((0.95, 0.9, 0.8)), "Fruit/Apple/Gala", "confident"),
        (answer((0.95, 0.9, 0.79)), "Fruit/Apple", "stops: below 0.95"),
        (answer((0.7, 0.6, 0.5)), None, "stops: below 0.95"),
        (answer((0.95, 0.9, 0.85), known=(True, True, False)), "Fruit/Apple", "stops: unknown below Apple"),
        (answer((0.95, 0.9, 0.85), known=(False, False, False)), None, "stops: unknown below the root"),
        # Too improbable comes before unknown, because it holds for known pictures, too.
        (answer((0.95, 0.9, 0.5), known=(True, True, False)), "Fruit/Apple", "stops: below 0.95"),
        (answer((0.99, 0.99, 0.99), least=None), None, "stops: below 0.95"),
        (answer((0.99, 0.99, 0.99), least=None, images=20), None, "stops: too few pictures for 0.95"),
    ],
)
def test_an_answer_stops_where_it_is_no_longer_sure(found: Answer, node: str | None, reason: str) -> None:
    level = 0 if node is None else node.count("/") + 1
    assert found == Answer(node=node, level=level, precision=0.95, reason=reason)


def test_what_a_list_decides_is_answered_without_a_threshold() -> None:
    apples = restriction_of(TREE, allow=["Fruit/Apple"])
    found = answer((1.0, 1.0, 0.6), least=None, restriction=apples)
    assert (found.node, found.reason) == ("Fruit/Apple", "stops: below 0.95")
    gala = restriction_of(TREE, allow=["Fruit/Apple/Gala"])
    assert answer((1.0, 1.0, 1.0), least=None, restriction=gala).reason == "only allowed child"
    # Garlic competes with Fruit; within Fruit, only Gala is left.
    either = restriction_of(TREE, allow=["Fruit/Apple/Gala", "Garlic"])
    found = answer((0.9, 0.9, 0.9), restriction=either)
    assert (found.node, found.reason) == ("Fruit/Apple/Gala", "only allowed child")


def test_an_answer_ends_where_the_request_asked_it_to() -> None:
    cut = restriction_of(TREE, depth={"Fruit": 2})
    path = TREE.path_at_level[TREE.index["Fruit/Apple"]]
    assert answer((0.95, 0.9), restriction=cut, path=path).reason == "stops: as deep as asked"


def test_thresholds_come_from_the_bundles_pictures_for_any_precision(tiny_bundle: Path, tmp_path: Path) -> None:
    taxonomy = read_bundle(tiny_bundle).taxonomy
    assert Answering.of(read_bundle(tiny_bundle)) is None
    found = Answering.of(promising(tiny_bundle, tmp_path / "bundle", sure_above(taxonomy, 0.5, groups=3)))
    assert found is not None and found.precision == 0.9
    whole = unrestricted(taxonomy)
    sure, surer = found.threshold(whole, 0.8), found.threshold(whole, 0.9)
    assert sure.value is not None and surer.value is not None
    assert sure.value < surer.value and found.threshold(whole, 0.8) is sure
    # Under a list without the last leaf, no picture is left that the network takes for the first and that is not.
    listed = found.threshold(restriction_of(taxonomy, deny=[taxonomy.names[taxonomy.leaves[-1]]]), 0.8)
    assert listed.images < sure.images and listed.value is not None and listed.value < sure.value


def test_an_answer_without_prototypes_promises_nothing(tiny_bundle: Path, tmp_path: Path, photograph: Path) -> None:
    taxonomy = read_bundle(tiny_bundle).taxonomy
    model = load(promising(tiny_bundle, tmp_path / "bundle", sure_above(taxonomy, 0.05, groups=3)), device="cpu")
    assert model.predict(photograph).answer is not None
    assert model.predict(photograph, without=(0,)).answer is None
    both = model.predict(photograph, without=(0,), deny=["Tool"])
    assert both.answer is None and both.restriction is not None
