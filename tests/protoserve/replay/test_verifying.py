"""Answers are made again, by Python and over JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import protoserve
from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


def test_the_same_picture_and_bundle_give_the_same_answer(
    classifier: Classifier, tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    node = classifier.taxonomy.names[0]
    for answer in (classifier.predict(photograph), classifier.predict(photograph, top_k=2, maps=True, deny=[node])):
        file = tmp_path / "answer.json"
        file.write_text(answer.model_dump_json())
        for form in (answer, json.loads(file.read_text()), file):
            result = protoserve.verify(form, photograph, tiny_bundle, device="cpu")
            assert (result.differences, result.notes, result.again) == ((), (), answer)


def test_another_picture_and_another_number_are_told(
    classifier: Classifier, tiny_bundle: Path, photograph: Path
) -> None:
    answer = classifier.predict(photograph).model_dump(mode="json")
    other = photograph.read_bytes() + b"\0"
    found = protoserve.verify(answer, other, tiny_bundle, device="cpu").differences
    assert [line.partition(":")[0] for line in found] == ["id", "image, sha256"]
    answer["levels"][0]["probability"] += 0.001
    [line] = protoserve.verify(answer, photograph, tiny_bundle, device="cpu").differences
    assert line.startswith("levels 1, probability: was")


def test_an_answer_to_pixels_is_noted(classifier: Classifier, tiny_bundle: Path, photograph: Path) -> None:
    answer = classifier.predict(photograph).model_dump(mode="json")
    del answer["id"], answer["image"]["sha256"]
    result = protoserve.verify(answer, photograph, tiny_bundle, device="cpu")
    assert result.same and "does not name its picture" in result.notes[0]


def test_of_several_answers_that_to_the_picture_counts(
    classifier: Classifier, tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    other = classifier.predict(photograph.read_bytes() + b"\0")
    file = tmp_path / "answers.json"
    file.write_text(f"[{other.model_dump_json()}, {classifier.predict(photograph).model_dump_json()}]")
    assert protoserve.verify(file, photograph, tiny_bundle, device="cpu").same
    with pytest.raises(InputError, match="none of its 2 answers is to this picture"):
        protoserve.verify(file, photograph.read_bytes() + b"\0\0", tiny_bundle, device="cpu")
