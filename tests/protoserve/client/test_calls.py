"""What the client sends, and what it refuses to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import pytest

from protoserve.client import calls
from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction


@pytest.fixture(scope="module")
def prediction(classifier: Classifier, photograph: Path) -> Prediction:
    return classifier.predict(photograph)


def query(**asked: Unpack[calls.Asked]) -> dict[str, Any]:
    return dict(calls.predict(b"picture", None, None, "boxes", asked).options["params"])


def test_options_are_written_as_the_service_reads_them() -> None:
    assert query(
        without=[12, 17], allow=["Fruit", "Garlic"], depth={"": 3, "Fruit/Apple": 2}, prior={"Fruit": 0.5}
    ) == {
        "without": "12,17",
        "allow": "Fruit,Garlic",
        "depth": "3,Fruit/Apple:2",
        "prior": "Fruit:0.5",
    }
    assert query() == {}


def test_names_that_a_query_can_not_hold_are_refused() -> None:
    with pytest.raises(InputError, match="deny: a query can't name 'Apples, red'"):
        query(deny=["Apples, red"])
    with pytest.raises(InputError, match=r"allow=\['Fruit'\]"):
        query(allow="Fruit")


def test_feedback_names_the_answer(prediction: Prediction) -> None:
    call = calls.feedback(prediction, "wrong", "Animal/Lion", (), "a mane", "Ada")
    assert (call.method, call.path) == ("POST", "/v1/feedback")
    for text in (prediction.id, prediction.model.version, prediction.image.sha256, "Animal/Lion", "a mane", "Ada"):
        assert f'"{text}"' in call.options["content"]
    assert call.options["headers"]["X-Request-ID"]


@pytest.mark.parametrize(
    ("verdict", "node", "prototypes", "message"),
    [
        ("right", "Scuba", (), "takes no node"),
        ("wrong reason", None, (), "names the prototypes"),
        ("wrong reason", None, (-1,), "feedback, prototypes.0: .*greater than or equal to 0"),
        ("fine", None, (), "feedback, verdict"),
    ],
)
def test_feedback_that_contradicts_itself_is_not_sent(
    prediction: Prediction, verdict: Any, node: str | None, prototypes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        calls.feedback(prediction, verdict, node, prototypes, "", "")


def test_a_prediction_of_pixels_takes_no_feedback(prediction: Prediction) -> None:
    with pytest.raises(InputError, match="came as pixels"):
        calls.feedback(prediction.model_copy(update={"id": None}), "right", None, (), "", "")
