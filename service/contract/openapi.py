"""The OpenAPI document, built from the pydantic models that the routes use."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from protoserve import __version__
from protoserve.feedback.record import Feedback, FeedbackRecord
from protoserve.images.signatures import WEB_FORMATS
from protoserve.schema import Prediction
from service.contract.example import EXAMPLE
from service.contract.feedback import MEDIA_TYPE as FEEDBACK_TYPE
from service.contract.feedback import PictureReceipt
from service.contract.openapi_inference import REQUESTS, RESPONSES, inference_paths
from service.contract.problems import MEDIA_TYPE, STATUS_OF, InferenceProblemDocument, ProblemDocument
from service.contract.queries import PredictQuery, PrototypeImageQuery, PrototypesQuery
from service.contract.responses import (
    BatchDocument,
    ModelDocument,
    PrototypeDocument,
    PrototypePage,
    TaxonomyDocument,
)
from service.contract.uploads import BINARY, FIELD, FORM

_REFERENCE: Final = "#/components/schemas/{model}"
_DOCUMENTS: Final[tuple[type[BaseModel], ...]] = (
    BatchDocument,
    InferenceProblemDocument,
    ModelDocument,
    Prediction,
    ProblemDocument,
    PrototypeDocument,
    PrototypePage,
    TaxonomyDocument,
)
_FEEDBACK_DOCUMENTS: Final[tuple[type[BaseModel], ...]] = (FeedbackRecord, PictureReceipt)
_BYTES: Final = {"type": "string", "format": "binary"}
_BODY_CODES: Final = (
    "answer_timeout",
    "invalid_multipart",
    "invalid_parameter",
    "missing_image",
    "overloaded",
    "request_timeout",
    "request_too_large",
    "too_many_images",
    "unexpected_part",
    "unknown_parameter",
    "unsupported_encoding",
    "unsupported_media_type",
)
_ANY_ROUTE_CODES: Final = ("headers_too_large", "internal_error", "malformed_request")
_KEY_CODES: Final = ("invalid_key",)
_IMAGE_CODES: Final = ("broken_image", "image_too_large", "unsupported_image")


class _ResponseSchema(GenerateJsonSchema):
    """Marks properties with a default as required: responses never omit them, so clients can rely on them."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return self.mode == "serialization" or super().field_is_required(field, total)


def openapi_document(
    top_k: int | None = None, images: int | None = None, *, metrics: bool = True, feedback: bool = True
) -> dict[str, Any]:
    """Build the OpenAPI 3.1 document of the service: all its routes, parameters, responses and problem codes.

    `top_k` is the most evidence that the model keeps per level, `images` the most images of a batch request. A running
    service knows both limits. `metrics` says whether /metrics is a route, or has a port of its own; `feedback` whether
    the service takes feedback.
    """
    answers = (*_DOCUMENTS, *RESPONSES, *(_FEEDBACK_DOCUMENTS if feedback else ()))
    _, definitions = models_json_schema(
        [*((model, "serialization") for model in answers), *((model, "validation") for model in REQUESTS)],
        ref_template=_REFERENCE,
        schema_generator=_ResponseSchema,
    )
    # It is there only if the request had one.
    definitions["$defs"]["InferResponse"]["required"].remove("id")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ProtoServe",
            "version": __version__,
            "description": "Image classification at every level of a taxonomy, with the evidence for each level.",
        },
        # Relative to this document, so that it is true behind a proxy that adds a prefix, too.
        "servers": [{"url": "./"}],
        "paths": {
            "/v1/predict": {"post": _predict(top_k)},
            "/v1/predict/batch": {"post": _predict_batch(top_k, images)},
            "/v1/input": {"post": _input()},
            "/v1/model": {"get": _get("The model that answers", ModelDocument)},
            "/v1/taxonomy": {"get": _get("The taxonomy", TaxonomyDocument)},
            "/v1/prototypes": {
                "get": _get(
                    "The prototypes, in pages",
                    PrototypePage,
                    _query_parameters(PrototypesQuery),
                    ("invalid_parameter", "unknown_node"),
                )
            },
            "/v1/prototypes/{id}": {
                "get": _get("One prototype", PrototypeDocument, [_prototype_id()], ("unknown_prototype",))
            },
            "/v1/prototypes/{id}/image": {"get": _prototype_image()},
            "/v1/samples/{id}": {"get": _sample()},
            **(_feedback() if feedback else {}),
            **inference_paths(_inference_responses, _reference),
            "/livez": {"get": _plain("Whether the process is alive", "text/plain")},
            "/healthz": {"get": _plain("Whether the process is alive, as /livez", "text/plain")},
            "/readyz": {"get": _plain("Whether the model is loaded and warmed up", "text/plain", codes=("not_ready",))},
            **({"/metrics": {"get": _plain("Metrics for Prometheus", "text/plain", keyed=True)}} if metrics else {}),
            "/openapi.json": {"get": _plain("This document", "application/json", {"type": "object"})},
            "/": {"get": _plain("A page to try the model", "text/html")},
        },
        # Either scheme where the service has keys, none where it has no keys.
        "security": [{}, {"bearer": []}, {"header": []}],
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _predict_parameters(top_k: int | None) -> list[dict[str, Any]]:
    parameters = _query_parameters(PredictQuery)
    for parameter in parameters:
        if parameter["name"] == "top_k" and top_k is not None:
            parameter["schema"]["maximum"] = top_k
    return parameters


def _predict(top_k: int | None) -> dict[str, Any]:
    responses = _responses(Prediction, (*_BODY_CODES, *_IMAGE_CODES))
    responses["200"]["content"]["application/json"]["example"] = EXAMPLE.model_dump(mode="json")
    return {
        "summary": "Predict one image",
        "parameters": _predict_parameters(top_k),
        "requestBody": _image_body(),
        "responses": responses,
    }


def _predict_batch(top_k: int | None, images: int | None) -> dict[str, Any]:
    image_list = {"type": "array", "items": _BYTES, "minItems": 1} | ({} if images is None else {"maxItems": images})
    return {
        "summary": "Predict several images; each gets a prediction or a problem, in the order of the request",
        "parameters": _predict_parameters(top_k),
        "requestBody": {
            "required": True,
            "content": {FORM: {"schema": _form(image_list)}},
        },
        "responses": _responses(BatchDocument, _BODY_CODES),
    }


def _feedback() -> dict[str, Any]:
    """The routes of feedback. They need a key, wherever they are."""
    keyed: dict[str, Any] = {"security": [{"bearer": []}, {"header": []}]}
    codes = (
        "answer_timeout",
        "overloaded",
        "request_timeout",
        "request_too_large",
        "storage_full",
        "storage_unavailable",
        "too_many_requests",
        "unknown_parameter",
        "unsupported_encoding",
        "unsupported_media_type",
    )
    schema = Feedback.model_json_schema(ref_template=_REFERENCE)
    said = {
        "summary": "Say whether an answer, or a reason of it, was right",
        "requestBody": {"required": True, "content": {FEEDBACK_TYPE: {"schema": schema}}},
        "responses": _responses(
            FeedbackRecord, (*codes, "invalid_feedback", "unknown_node", "unknown_prototype"), status="201"
        ),
    }
    picture = {
        "summary": "Keep the picture of an answer, where the service keeps pictures",
        "requestBody": _image_body(),
        "responses": _responses(
            PictureReceipt,
            (*codes, "invalid_multipart", "missing_image", "too_many_images", "unexpected_part", "unsupported_image"),
            status="201",
        ),
    }
    return {"/v1/feedback": {"post": said | keyed}, "/v1/feedback/picture": {"post": picture | keyed}}


def _image_body() -> dict[str, Any]:
    return {
        "required": True,
        "description": f"The image's bytes ({', '.join(WEB_FORMATS)}), or a form that holds them.",
        "content": {
            "image/*": {"schema": _BYTES},
            BINARY: {"schema": _BYTES},
            FORM: {"schema": _form(_BYTES)},
        },
    }


def _form(field: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {FIELD: field},
        "required": [FIELD],
        "additionalProperties": False,
    }


def _get(
    summary: str,
    document: type[BaseModel],
    parameters: list[dict[str, Any]] | None = None,
    codes: tuple[str, ...] = (),
) -> dict[str, Any]:
    answer = {"summary": summary, "responses": _responses(document, (*codes, "unknown_parameter"))}
    return {**answer, "parameters": parameters} if parameters else answer


def _prototype_image() -> dict[str, Any]:
    codes = ("invalid_parameter", "unknown_prototype")
    responses = _picture("The training patch, alone or in its context", ("image/webp", "image/png"), *codes)
    parameters = [_prototype_id(), *_query_parameters(PrototypeImageQuery)]
    return {"summary": "The image of a prototype", "parameters": parameters, "responses": responses}


def _input() -> dict[str, Any]:
    responses = _responses(None, (*_BODY_CODES, *_IMAGE_CODES))
    responses["200"] = {
        "description": "The picture as the network gets it",
        "content": {"image/png": {"schema": _BYTES}},
    }
    body = {"image/*": {"schema": _BYTES}, BINARY: {"schema": _BYTES}, FORM: {"schema": _form(_BYTES)}}
    return {
        "summary": "The picture as the network gets it, also of formats that browsers can't draw",
        "requestBody": {"required": True, "content": body},
        "responses": responses,
    }


def _sample() -> dict[str, Any]:
    responses = _picture("The sample picture", ("image/png",), "unknown_sample")
    return {"summary": "A picture to try the model on", "parameters": [_prototype_id()], "responses": responses}


def _picture(description: str, media_types: tuple[str, ...], *codes: str) -> dict[str, Any]:
    responses = _responses(None, ("not_ready", "unknown_parameter", *codes))
    content = {media_type: {"schema": _BYTES} for media_type in media_types}
    responses["200"] = {"description": description, "content": content}
    responses["304"] = {"description": "The image is unchanged: If-None-Match names its ETag"}
    return responses


def _plain(
    summary: str,
    media_type: str,
    schema: dict[str, Any] | None = None,
    *,
    keyed: bool = False,
    codes: tuple[str, ...] = (),
) -> dict[str, Any]:
    responses = _responses(None, codes, keyed=keyed)
    responses["200"] = {
        "description": summary,
        "content": {media_type: {"schema": schema or {"type": "string"}}},
    }
    # These routes need no key.
    return {"summary": summary, "responses": responses} | ({} if keyed else {"security": []})


def _responses(
    document: type[BaseModel] | None,
    codes: tuple[str, ...],
    *,
    keyed: bool = True,
    status: str = "200",
    problem: type[BaseModel] = ProblemDocument,
) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code in sorted((*codes, *_ANY_ROUTE_CODES, *(_KEY_CODES if keyed else ()))):
        by_status.setdefault(STATUS_OF[code], []).append(code)
    responses: dict[str, Any] = {}
    if document is not None:
        responses[status] = {
            "description": (document.__doc__ or "").partition("\n")[0],
            "content": {"application/json": {"schema": _reference(document)}},
        }
    for refusal, names in sorted(by_status.items()):
        responses[str(refusal)] = {
            "description": " or ".join(names),
            "content": {MEDIA_TYPE: {"schema": _reference(problem)}},
        }
    return responses


def _inference_responses(document: type[BaseModel] | None, codes: tuple[str, ...], keyed: bool) -> dict[str, Any]:
    return _responses(document, codes, keyed=keyed, problem=InferenceProblemDocument)


def _reference(document: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=document.__name__)}


def _prototype_id() -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}


def _query_parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    parameters = []
    for name, schema in query.model_json_schema()["properties"].items():
        schema.pop("title", None)
        description = schema.pop("description", "")
        # A client sends "null" by leaving the parameter out.
        options = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
        for option in options:
            schema.update(option)
        if schema.get("default", 0) is None:
            del schema["default"]
        parameters.append(
            {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
        )
    return parameters
