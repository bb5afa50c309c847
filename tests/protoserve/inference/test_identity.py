"""Answers name what they came from, and equal requests have equal ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.identity import answer_id, options_of, recorded
from protoserve.inference.options import PredictOptions


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


def test_an_answer_names_model_picture_and_options(classifier: Classifier, photograph: Path) -> None:
    answer = classifier.predict(photograph, top_k=2)
    sha256 = hashlib.sha256(photograph.read_bytes()).hexdigest()
    assert (answer.image.sha256, answer.image.drafted) == (sha256, False)
    assert answer.options == {"top_k": 2, "alternatives": 3, "maps": False}
    # The form of the id is a promise: ids in stored feedback must stay those of their answers.
    text = json.dumps([classifier.bundle.version, sha256, False, {"alternatives": 3, "maps": False, "top_k": 2}])
    assert answer.id == hashlib.sha256(text.replace(", ", ",").replace(": ", ":").encode()).hexdigest()[:32]


def test_equal_requests_have_equal_ids_and_others_differ(classifier: Classifier, photograph: Path) -> None:
    data = photograph.read_bytes()
    top_k = min(5, classifier.table.top_k)
    same = {classifier.predict(source, top_k=k).id for source in (photograph, data) for k in (None, top_k)}
    assert len(same) == 1
    others = [
        classifier.predict(data, top_k=1).id,
        classifier.predict(data, maps=True).id,
        classifier.predict(data, alternatives=1).id,
        # One byte more, after the picture's end.
        classifier.predict(data + b"\0").id,
    ]
    assert len({*same, *others}) == 5
    batch = classifier.predict([data, data])
    assert {answer.id for answer in batch} == same


def test_pixels_have_no_hash_and_so_no_id(classifier: Classifier) -> None:
    answer = classifier.predict(np.zeros((40, 60, 3), dtype=np.uint8))
    assert (answer.id, answer.image.sha256) == (None, None)
    assert answer.options["alternatives"] == 3
    assert answer_id("sha256:0", None, {}) is None


def test_a_draft_is_another_answer() -> None:
    assert answer_id("sha256:0", "0", {}) != answer_id("sha256:0", "0", {}, drafted=True)


def test_options_return_from_their_record(classifier: Classifier) -> None:
    table = classifier.table
    node = classifier.taxonomy.names[0]
    options = PredictOptions(top_k=1, maps=True, contrast=node, without=(2, 0), prior={node: 2.0})
    assert options_of(json.loads(json.dumps(recorded(options.resolved(table))))) == options
    default = recorded(PredictOptions().resolved(table))
    assert set(default) == {"top_k", "alternatives", "maps"} <= {field.name for field in fields(PredictOptions)}
    assert options_of(default).resolved(table).top_k == PredictOptions().resolved(table).top_k
    with pytest.raises(InputError, match=r"has the option 'contrasts'.*update it"):
        options_of({"contrasts": 1})


@pytest.mark.parametrize(("name", "value"), [("top_k", "many"), ("without", "12"), ("depth", [1]), ("maps", 7)])
def test_an_option_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"the answer's option {name}"):
        options_of({name: value})
