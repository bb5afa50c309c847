"""The part of the OpenAPI document about the Open Inference Protocol's routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic import BaseModel

from service.contract.inference_documents import (
    InferDocument,
    InferResponse,
    LiveDocument,
    MetadataDocument,
    ModelReadyDocument,
    ReadyDocument,
    ServerDocument,
)
from service.contract.tensors import HEADER, JSON
from service.contract.uploads import BINARY

RESPONSES: Final[tuple[type[BaseModel], ...]] = (
    InferResponse,
    LiveDocument,
    MetadataDocument,
    ModelReadyDocument,
    ReadyDocument,
    ServerDocument,
)
REQUESTS: Final[tuple[type[BaseModel], ...]] = (InferDocument,)
# Those of a body with pictures, which are not a form's and not of a media type of pictures.
_INFER_CODES: Final = (
    "answer_timeout",
    "broken_image",
    "image_too_large",
    "invalid_parameter",
    "invalid_tensor",
    "missing_image",
    "overloaded",
    "request_timeout",
    "request_too_large",
    "too_many_images",
    "unknown_model",
    "unknown_parameter",
    "unsupported_encoding",
    "unsupported_image",
)
_BINARY_FORM: Final = (
    f"The JSON document, whose size {HEADER} gives, and behind it the tensors that have a `binary_data_size`."
)
_HEADER: Final = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "size in bytes of the JSON document, where tensors in binary form follow it",
    "schema": {"type": "integer", "minimum": 0},
}

# `responses(document, codes, keyed)` and `reference(document)` make these parts of an operation.
Responses = Callable[[type[BaseModel] | None, tuple[str, ...], bool], dict[str, Any]]
Reference = Callable[[type[BaseModel]], dict[str, str]]


def inference_paths(responses: Responses, reference: Reference) -> dict[str, Any]:
    """Build the path items of these routes, those with and without a version."""

    def get(
        summary: str,
        document: type[BaseModel],
        *codes: str,
        keyed: bool = True,
        named: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        operation: dict[str, Any] = {"summary": summary, "responses": responses(document, codes, keyed)}
        if named:
            operation["parameters"] = named
        return {"get": operation if keyed else {**operation, "security": []}}

    paths = {
        "/v2": get("The server (Open Inference Protocol)", ServerDocument, "unknown_parameter"),
        "/v2/health/live": get("Whether the process is alive", LiveDocument, keyed=False),
        "/v2/health/ready": get("Whether the model is loaded and warmed up", ReadyDocument, "not_ready", keyed=False),
    }
    for version in ("", "/versions/{version}"):
        place = f"/v2/models/{{name}}{version}"
        named = [_path_parameter("name"), *([_path_parameter("version")] if version else [])]
        codes = ("unknown_model",)
        paths[place] = get("The model's inputs and outputs", MetadataDocument, *codes, "unknown_parameter", named=named)
        paths[f"{place}/ready"] = get(
            "Whether the model can answer", ModelReadyDocument, *codes, "not_ready", named=named
        )
        answers = responses(InferResponse, _INFER_CODES, True)
        answers["200"]["content"][BINARY] = {"schema": {"type": "string", "format": "binary"}}
        paths[f"{place}/infer"] = {
            "post": {
                "summary": "Predict the pictures of a tensor (Open Inference Protocol)",
                "parameters": [*named, _HEADER],
                "requestBody": {
                    "required": True,
                    "description": _BINARY_FORM,
                    "content": {
                        JSON: {"schema": reference(InferDocument)},
                        BINARY: {"schema": {"type": "string", "format": "binary"}},
                    },
                },
                "responses": answers,
            }
        }
    return paths


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
