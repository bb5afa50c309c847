"""What a client can ask: each function makes the request of one route, and knows how to read its answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar

import httpx
from pydantic import ValidationError

from protoserve.client.answers import document, mapping, picture_hash, predictions, prototype_page
from protoserve.errors import InputError, ServiceError
from protoserve.feedback.record import Feedback, FeedbackRecord, Verdict
from protoserve.schema import Prediction

Picture: TypeAlias = bytes | str | Path
Maps: TypeAlias = Literal["none", "boxes", "heat"]
View: TypeAlias = Literal["context", "patch"]
Answer = TypeVar("Answer")

_BINARY: Final = {"Content-Type": "application/octet-stream"}


class Asked(TypedDict, total=False):
    """What a request may ask besides the size of its answer: see `protoserve.inference.options.PredictOptions`."""

    contrast: str
    without: Sequence[int]
    precision: float
    allow: Sequence[str]
    deny: Sequence[str]
    depth: Mapping[str, int]
    prior: Mapping[str, float]
    list: str


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request to `path`, with the `options` of `httpx.Client.request`, and what `read`s its successful response."""

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[httpx.Response], Answer]
    options: Mapping[str, Any] = field(default_factory=dict)


def predict(image: Picture, top_k: int | None, alternatives: int | None, maps: Maps, asked: Asked) -> Call[Prediction]:
    """`POST /v1/predict`; raises InputError for a file that can't be read."""
    query = _query(top_k, alternatives, maps, asked)
    options = {"params": query, "content": _content(image), "headers": _BINARY}
    return Call("POST", "/v1/predict", lambda response: document(response, Prediction, "a prediction"), options)


def predict_batch(
    images: Sequence[Picture], top_k: int | None, alternatives: int | None, maps: Maps, asked: Asked
) -> Call[list[Prediction | ServiceError]]:
    """`POST /v1/predict/batch`; raises InputError for a file that can't be read."""
    files = [("image", (str(index), _content(image))) for index, image in enumerate(images)]
    options = {"params": _query(top_k, alternatives, maps, asked), "files": files}
    return Call("POST", "/v1/predict/batch", lambda response: predictions(response, len(files)), options)


def fitted(image: Picture) -> Call[bytes]:
    """`POST /v1/input`; raises InputError for a file that can't be read."""
    return Call("POST", "/v1/input", _bytes, {"content": _content(image), "headers": _BINARY})


def described(path: str) -> Call[dict[str, Any]]:
    """`GET` of a route that describes the model."""
    return Call("GET", path, mapping)


def prototypes(node: str | None, cursor: str | None) -> Call[tuple[list[dict[str, Any]], str | None]]:
    """`GET /v1/prototypes`: one page, and the cursor of the next."""
    query = {"node": node, "cursor": cursor}
    given = {name: value for name, value in query.items() if value is not None}
    return Call("GET", "/v1/prototypes", prototype_page, {"params": given})


def prototype_image(prototype: int, view: View) -> Call[bytes]:
    """`GET /v1/prototypes/{id}/image`."""
    return Call("GET", f"/v1/prototypes/{prototype}/image", _bytes, {"params": {"view": view}})


def sample(number: int) -> Call[bytes]:
    """`GET /v1/samples/{id}`."""
    return Call("GET", f"/v1/samples/{number}", _bytes)


def feedback(
    prediction: Prediction, verdict: Verdict, node: str | None, prototypes: Sequence[int], comment: str, by: str
) -> Call[FeedbackRecord]:
    """`POST /v1/feedback`. All attempts have one request id, by which records of one request count once.

    Raises InputError for a prediction without an id, and for feedback that contradicts itself.
    """
    if prediction.id is None or prediction.image.sha256 is None:
        raise InputError(
            "the prediction has no id, because its picture came as pixels; give feedback on one of a picture's bytes"
        )
    try:
        said = Feedback(
            answer=prediction.id,
            model=prediction.model.version,
            image=prediction.image.sha256,
            path=prediction.path,
            verdict=verdict,
            node=node,
            prototypes=list(prototypes),
            comment=comment,
            by=by,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"]))
        where = f"feedback, {field_name}" if field_name else "feedback"
        raise InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
    headers = {"Content-Type": "application/json", "X-Request-ID": uuid.uuid4().hex}
    options = {"content": said.model_dump_json(), "headers": headers}
    return Call("POST", "/v1/feedback", lambda response: document(response, FeedbackRecord, "a record"), options)


def feedback_picture(image: Picture) -> Call[str]:
    """`POST /v1/feedback/picture`; raises InputError for a file that can't be read."""
    return Call("POST", "/v1/feedback/picture", picture_hash, {"content": _content(image), "headers": _BINARY})


def _bytes(response: httpx.Response) -> bytes:
    return response.content


def _content(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(image)!r}: can't read the image ({error})") from error


def _query(top_k: int | None, alternatives: int | None, maps: Maps, asked: Asked) -> dict[str, str | int | float]:
    parameters = {
        "top_k": top_k,
        "alternatives": alternatives,
        "maps": None if maps == "boxes" else maps,
        "contrast": asked.get("contrast"),
        "without": ",".join(map(str, asked.get("without", ()))) or None,
        "precision": asked.get("precision"),
        "allow": _names("allow", asked.get("allow", ())),
        "deny": _names("deny", asked.get("deny", ())),
        "depth": _pairs(asked.get("depth", {})),
        "prior": _pairs(asked.get("prior", {})),
        "list": asked.get("list"),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _names(option: str, nodes: Sequence[str]) -> str | None:
    """Write nodes for a query; raises InputError for a name that it can't hold."""
    if isinstance(nodes, str):
        raise InputError(f"{option}={nodes!r} is one text; give a list of nodes, such as {option}=[{nodes!r}]")
    for node in nodes:
        if "," in node:
            raise InputError(
                f"{option}: a query can't name {node!r}, because of its comma; name it in a list of the bundle"
            )
    return ",".join(nodes) or None


def _pairs(values: Mapping[str, float]) -> str | None:
    """Write `{"Fruit": 2}` as `Fruit:2`; None for an empty mapping."""
    return ",".join(f"{node}:{value:g}" if node else f"{value:g}" for node, value in values.items()) or None
