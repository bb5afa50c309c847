"""The Open Inference Protocol's requests and responses: JSON documents, and tensors behind them in binary form.

https://github.com/kserve/open-inference-protocol describes the protocol, Triton's documentation its extension for
binary tensors: a header gives the size of the JSON document, and each tensor's `binary_data_size` that of its part of
what follows. An element of a BYTES tensor is its size, four bytes little-endian, and its bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.responses import Response

from protoserve.errors import nearest
from service.contract.inference_documents import InferDocument, InputTensor, RequestedOutput, Scalar
from service.contract.problems import Problem
from service.contract.queries import PredictQuery
from service.contract.responses import NO_STORE
from service.contract.uploads import BINARY

HEADER: Final = "Inference-Header-Content-Length"
JSON: Final = "application/json"
INPUTS: Final = ("image", "pixels")
OUTPUTS: Final = ("path", "probability", "node_probability", "prediction")
# The JSON documents of requests are small; this bounds the memory that parsing one takes.
_MAX_MARKS: Final = 10_000
_MARKS: Final = (b"[", b"{", b",")
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True)
class InferRequest:
    """A checked request: its encoded pictures or its `pixels` uint8 [N, height, width, 3], the query that its
    parameters stand for, and its outputs with whether each is binary."""

    id: str | None
    images: tuple[memoryview, ...]
    pixels: NDArray[np.uint8] | None
    query: PredictQuery
    outputs: tuple[tuple[str, bool], ...]

    @property
    def count(self) -> int:
        """The number of pictures."""
        return len(self.images) if self.pixels is None else len(self.pixels)


@dataclass(frozen=True)
class TensorLimits:
    """The most pictures, and of a picture in `pixels` the most pixels and the longest side."""

    images: int
    pixels: int
    side: int


def parse_infer(body: bytes, header: str | None, limits: TensorLimits) -> InferRequest:
    """Read the body of a request; `header` is its `Inference-Header-Content-Length`, None without one.

    Raises Problem `invalid_tensor` for a malformed document or tensor, `missing_image`, `too_many_images`,
    `image_too_large`, and `unknown_parameter` or `invalid_parameter` as the query of /v1/predict does.
    """
    size = _document_size(header, len(body))
    document = _read_document(memoryview(body)[:size])
    binary = memoryview(body)[size:]
    if len(document.inputs) != 1:
        names = ", ".join(tensor.name[:80] for tensor in document.inputs[:4]) or "none"
        raise _invalid(f"the request has {len(document.inputs)} inputs ({names}); give one: image or pixels")
    [tensor] = document.inputs
    stated = tensor.parameters.binary_data_size
    if stated != (len(binary) or None) and not (stated == 0 and not len(binary)):
        told = "no binary_data_size" if stated is None else f"binary_data_size {stated:,}"
        raise _invalid(f"input {tensor.name[:80]!r} has {told}, but {len(binary):,} bytes follow the JSON document")
    if (tensor.data is not None) == (stated is not None):
        raise _invalid(f"input {tensor.name[:80]!r} needs either data or a binary_data_size; give one of them")
    images: tuple[memoryview, ...] = ()
    pixels = None
    if tensor.name == "image":
        images = _images(tensor, binary, limits)
    elif tensor.name == "pixels":
        pixels = _pixels(tensor, binary, limits)
    else:
        raise _invalid(
            f"the model has no input {tensor.name[:80]!r}; it takes image or pixels{nearest(tensor.name[:80], INPUTS)}"
        )
    parameters = dict(document.parameters)
    binary_by_default = parameters.pop("binary_data_output", False)
    if not isinstance(binary_by_default, bool):
        raise Problem("invalid_parameter", f"binary_data_output={binary_by_default!r}: give true or false")
    return InferRequest(
        document.id, images, pixels, _query(parameters), _requested(document.outputs, binary=binary_by_default)
    )


def _document_size(header: str | None, total: int) -> int:
    if header is None:
        return total
    if not (header.isascii() and header.isdigit()) or int(header[:20]) > total:
        raise _invalid(
            f"{HEADER} is {header[:40]!r}, but the body has {total:,} bytes; give the size of its JSON document"
        )
    return int(header)


def _read_document(head: memoryview) -> InferDocument:
    text = bytes(head)
    if sum(text.count(mark) for mark in _MARKS) > _MAX_MARKS:
        raise _invalid(f"the JSON document has more than {_MAX_MARKS:,} elements; send tensors in binary form")
    try:
        return InferDocument.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _invalid(f"{place or 'the JSON document'}: {first['msg'][:200]}; correct it") from error


def _images(tensor: InputTensor, binary: memoryview, limits: TensorLimits) -> tuple[memoryview, ...]:
    shape = tensor.shape
    if tensor.datatype != "BYTES" or len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise _invalid(f"input 'image' is {tensor.datatype[:20]} {shape}; give BYTES [N] or [N, 1]")
    _check_count(shape[0], limits)
    if tensor.data is None:
        found = _split(binary, shape[0])
    else:
        texts = [text for part in tensor.data for text in ([part] if isinstance(part, str) else part)]
        found = [_from_base64(text, number) for number, text in enumerate(texts)]
    if len(found) != shape[0]:
        raise _invalid(f"input 'image' has the shape {shape}, but {len(found)} elements; make them agree")
    if not all(map(len, found)):
        empty = list(map(len, found)).index(0)
        raise Problem("missing_image", f"element {empty} of input 'image' is empty; send an image's bytes")
    return tuple(found)


def _split(binary: memoryview, count: int) -> list[memoryview]:
    """Split a BYTES tensor into `count` elements."""
    found: list[memoryview] = []
    start = 0
    for number in range(count):
        if start + _LENGTH.size > len(binary):
            raise _invalid(f"input 'image' ends before the size of element {number}; send all of its {count} elements")
        (size,) = _LENGTH.unpack_from(binary, start)
        start += _LENGTH.size
        if size > len(binary) - start:
            raise _invalid(
                f"element {number} of input 'image' has {size:,} bytes by its size, but {len(binary) - start:,} follow"
            )
        found.append(binary[start : start + size])
        start += size
    if start != len(binary):
        raise _invalid(f"{len(binary) - start:,} bytes follow the {count} elements of input 'image'; leave them out")
    return found


def _from_base64(text: str, number: int) -> memoryview:
    try:
        return memoryview(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise _invalid(
            f"element {number} of input 'image' is not base64 ({error}); encode it, or send the tensor in binary form"
        ) from error


def _pixels(tensor: InputTensor, binary: memoryview, limits: TensorLimits) -> NDArray[np.uint8]:
    shape = tensor.shape
    if tensor.datatype != "UINT8" or len(shape) != 4 or shape[3] != 3 or min(shape) < 0 or not shape[1] * shape[2]:
        raise _invalid(f"input 'pixels' is {tensor.datatype[:20]} {shape}; give UINT8 [N, height, width, 3], RGB")
    _check_count(shape[0], limits)
    if max(shape[1:3]) > limits.side or shape[1] * shape[2] > limits.pixels:
        raise Problem(
            "image_too_large",
            f"input 'pixels' has pictures of {shape[2]} × {shape[1]} pixels; at most {limits.pixels:,} pixels and a "
            f"side of {limits.side:,} are allowed",
        )
    if tensor.data is not None:
        raise _invalid("input 'pixels' has data; send it in binary form")
    size = shape[0] * shape[1] * shape[2] * 3
    if len(binary) != size:
        raise _invalid(f"input 'pixels' has the shape {shape}, which takes {size:,} bytes, but {len(binary):,} follow")
    return np.frombuffer(binary, dtype=np.uint8).reshape(shape)


def _check_count(count: int, limits: TensorLimits) -> None:
    if count < 1:
        raise Problem("missing_image", f"the input has {count} pictures; send at least one")
    if count > limits.images:
        raise Problem(
            "too_many_images", f"the input has {count} pictures, more than the {limits.images} allowed; send fewer"
        )


def _query(parameters: dict[str, Scalar]) -> PredictQuery:
    known = sorted(PredictQuery.model_fields)
    for name, value in parameters.items():
        if name not in PredictQuery.model_fields:
            raise Problem(
                "unknown_parameter",
                f"unknown parameter {name[:80]!r}: a request takes {', '.join(known)}{nearest(name[:80], known)}",
            )
        if isinstance(value, bool):
            raise Problem("invalid_parameter", f"{name}={value!r} is not a number or a text; correct it")
    try:
        # As in a query: numbers may come as text, and texts such as a depth as numbers.
        return PredictQuery.model_validate({name: str(value) for name, value in parameters.items()})
    except ValidationError as error:
        first = error.errors()[0]
        value = str(first["input"])[:80]
        raise Problem("invalid_parameter", f"{first['loc'][0]}={value!r}: {first['msg']}; correct it") from error


def _requested(outputs: Sequence[RequestedOutput] | None, *, binary: bool) -> tuple[tuple[str, bool], ...]:
    # Some clients send an empty list for all.
    if not outputs:
        return tuple((name, binary) for name in OUTPUTS)
    names = [output.name for output in outputs]
    for name in names:
        if name not in OUTPUTS:
            known = ", ".join(OUTPUTS)
            raise _invalid(f"the model has no output {name[:80]!r}; it has {known}{nearest(name[:80], OUTPUTS)}")
        if names.count(name) > 1:
            raise _invalid(f"output {name!r} is asked for twice; ask once")
    chosen = [output.parameters.binary_data for output in outputs]
    return tuple(zip(names, [binary if own is None else own for own in chosen], strict=True))


@dataclass(frozen=True)
class Tensor:
    """An output's values: float32 of any shape, or rows of texts in one array of objects."""

    name: str
    values: NDArray[Any]
    binary: bool


def infer_response(identity: dict[str, str], tensors: Sequence[Tensor]) -> Response:
    """Build the response; `identity` has `model_name`, `model_version` and the request's `id` if it has one."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor in tensors:
        texts = tensor.values.dtype == object
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": "BYTES" if texts else "FP32",
            "shape": list(tensor.values.shape),
        }
        if tensor.binary:
            part = _joined(tensor.values) if texts else tensor.values.astype("<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            output["data"] = tensor.values.ravel().tolist()
        outputs.append(output)
    document = json.dumps({**identity, "outputs": outputs}, ensure_ascii=False).encode()
    if not parts:
        return Response(document, headers=NO_STORE, media_type=JSON)
    headers = {**NO_STORE, HEADER: str(len(document))}
    return Response(b"".join([document, *parts]), headers=headers, media_type=BINARY)


def _joined(values: NDArray[Any]) -> bytes:
    encoded = [text.encode() for text in values.ravel().tolist()]
    return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))


def _invalid(detail: str) -> Problem:
    return Problem("invalid_tensor", detail)
