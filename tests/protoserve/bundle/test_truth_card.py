"""The truth card as JSON."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from protoserve.bundle.truth_card import Estimate, TruthCard
from tests.truth_cards import truth_card


def test_a_card_survives_json() -> None:
    card = truth_card()
    assert TruthCard.model_validate_json(card.model_dump_json()) == card


def test_a_card_of_an_older_version_still_loads() -> None:
    content = json.loads(truth_card().model_dump_json())
    for name in ("perturbation", "consistency", "purity", "part_effects", "backgrounds", "passed_over"):
        del content[name]
    older = TruthCard.model_validate(content)
    assert older.perturbation == [] and older.consistency == [] and older.purity == []
    assert older.part_effects == [] and older.backgrounds == []


def test_unknown_keys_and_fills_are_refused() -> None:
    content = json.loads(truth_card().model_dump_json())
    with pytest.raises(ValidationError, match="Extra inputs"):
        TruthCard.model_validate(content | {"accuracy": 1})
    content["necessity"][0]["fill"] = "black"
    with pytest.raises(ValidationError, match="fill"):
        TruthCard.model_validate(content)


def test_an_estimate_is_over_at_least_one_image() -> None:
    with pytest.raises(ValidationError, match="images"):
        Estimate(mean=0.0, low=0.0, high=0.0, images=0)
