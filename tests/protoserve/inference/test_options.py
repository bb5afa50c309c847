"""Options: defaults, limits and what a request may not ask of a model."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.options import OptionKeywords, PredictOptions, ResolvedOptions


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


def test_the_keywords_are_the_records_fields() -> None:
    assert get_type_hints(OptionKeywords) == get_type_hints(PredictOptions)
    assert [field.name for field in fields(ResolvedOptions)] == [field.name for field in fields(PredictOptions)]


def test_what_is_not_asked_has_the_documented_default(classifier: Classifier) -> None:
    resolved = PredictOptions().resolved(classifier.table)
    assert resolved.top_k == min(5, classifier.table.top_k)
    assert resolved.alternatives == 3
    assert not resolved.maps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": -1}, "top_k must be from 0 to"),
        ({"top_k": 99}, "not 99"),
        ({"alternatives": -1}, "alternatives must be 0 or more, not -1"),
    ],
)
def test_an_option_that_the_model_cannot_serve_is_refused(
    classifier: Classifier, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        PredictOptions(**options).resolved(classifier.table)
