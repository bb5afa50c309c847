"""The wire format of the Open Inference Protocol: what is read, what is refused, and what is written."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from service.contract.problems import Problem
from service.contract.tensors import HEADER, Tensor, TensorLimits, infer_response, parse_infer

LIMITS = TensorLimits(images=3, pixels=10_000, side=200)


def elements(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def sent(binary: bytes = b"", header: str | None = None, **document: Any) -> tuple[bytes, str | None]:
    """The body of a request and its header."""
    head = json.dumps(document).encode()
    return head + binary, header or (str(len(head)) if binary else None)


def tensor(name: str = "image", datatype: str = "BYTES", shape: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def behind(binary: bytes, **tensor_fields: Any) -> tuple[bytes, str | None]:
    """A request with one tensor in binary form."""
    size = {"parameters": {"binary_data_size": len(binary)}}
    return sent(binary, inputs=[tensor(**{**size, **tensor_fields})])


def texts(*images: bytes, **tensor_fields: Any) -> tuple[bytes, str | None]:
    """A request with one tensor in base64."""
    data = [base64.b64encode(image).decode() for image in images]
    return sent(inputs=[tensor(**{"shape": [len(images)], "data": data, **tensor_fields})])


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_pictures_come_in_binary_form_or_in_base64(shape: list[int]) -> None:
    for body, header in (behind(elements(b"one", b"second"), shape=shape), texts(b"one", b"second", shape=shape)):
        found = parse_infer(body, header, LIMITS)
        assert [bytes(image) for image in found.images] == [b"one", b"second"]
        assert (found.count, found.pixels, found.id) == (2, None, None)
        names = ("path", "probability", "node_probability", "prediction")
        assert found.outputs == tuple((name, False) for name in names)


def test_pixels_are_a_view_of_the_body() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    body, header = behind(pixels.tobytes(), name="pixels", datatype="UINT8", shape=pixels.shape)
    found = parse_infer(body, header, LIMITS)
    assert found.pixels is not None and found.count == 2
    np.testing.assert_array_equal(found.pixels, pixels)


def test_parameters_are_those_of_the_query_and_outputs_are_chosen_one_by_one() -> None:
    body, header = sent(
        id="7",
        parameters={"top_k": 2, "allow": "Fruit,Nut", "depth": 1, "precision": 0.9, "binary_data_output": True},
        inputs=[tensor(data=[base64.b64encode(b"x").decode()])],
        outputs=[{"name": "prediction", "parameters": {"binary_data": False}}, {"name": "path"}],
    )
    found = parse_infer(body, header, LIMITS)
    options = found.query.options()
    assert (options.top_k, options.allow, options.depth, options.precision) == (2, ("Fruit", "Nut"), {"": 1}, 0.9)
    assert found.outputs == (("prediction", False), ("path", True)) and found.id == "7"


ONE = base64.b64encode(b"x").decode()
BODIES: dict[str, tuple[tuple[bytes, str | None], str, str]] = {
    "not JSON": ((b"{", None), "invalid_tensor", "Invalid JSON|EOF"),
    "not UTF-8": ((b'{"id": "\xff"}', None), "invalid_tensor", "JSON document"),
    "no inputs": (sent(inputs=[]), "invalid_tensor", "0 inputs (none); give one"),
    "two inputs": (sent(inputs=[tensor(data=[ONE]), tensor("pixels", data=[ONE])]), "invalid_tensor", "2 inputs"),
    "unknown field": (sent(inputs=[], outputz=[]), "invalid_tensor", "outputz: Extra inputs"),
    "deep": ((b'{"inputs": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", None), "invalid_tensor", "JSON"),
    "many": ((b'{"inputs": [' + b"1," * 20_000 + b"1]}", None), "invalid_tensor", "more than 10,000 elements"),
    "header too large": (sent(b"", "999", inputs=[]), "invalid_tensor", f"{HEADER} is '999', but the body has 14"),
    "header no number": (sent(b"", "-1", inputs=[]), "invalid_tensor", f"{HEADER} is '-1'"),
    "header of other digits": (sent(b"", "²", inputs=[]), "invalid_tensor", "give the size of its JSON document"),
    "header too small": (sent(b"", "3", inputs=[]), "invalid_tensor", "JSON"),
    "unknown input": (texts(b"x", name="imag"), "invalid_tensor", "no input 'imag'; it takes image or pixels; did you"),
    "wrong type": (texts(b"x", datatype="FP32"), "invalid_tensor", "'image' is FP32 [1]; give BYTES [N]"),
    "wrong rank": (texts(b"x", shape=[1, 1, 1]), "invalid_tensor", "give BYTES [N] or [N, 1]"),
    "text as a number": (texts(b"x", shape=["1"]), "invalid_tensor", "valid integer"),
    "huge": (texts(b"x", shape=[10**30]), "too_many_images", "more than the 3 allowed"),
    "none": (texts(shape=[0]), "missing_image", "0 pictures"),
    "less than none": (texts(b"x", shape=[-1]), "missing_image", "-1 pictures"),
    "too many": (texts(b"x", b"y", b"z", b"w"), "too_many_images", "4 pictures, more than the 3 allowed"),
    "fewer than stated": (texts(b"x", shape=[2]), "invalid_tensor", "has the shape [2], but 1 elements"),
    "not base64": (sent(inputs=[tensor(data=["*"])]), "invalid_tensor", "element 0 of input 'image' is not base64"),
    "empty text": (texts(b"x", b""), "missing_image", "element 1 of input 'image' is empty"),
    "empty": (behind(elements(b"x", b""), shape=[2]), "missing_image", "element 1 of input 'image' is empty"),
    "data and size": (behind(elements(b"x"), data=[ONE]), "invalid_tensor", "either data or a binary_data_size"),
    "neither": (sent(inputs=[tensor()]), "invalid_tensor", "either data or a binary_data_size"),
    "size without bytes": (
        sent(inputs=[tensor(parameters={"binary_data_size": 9})]),
        "invalid_tensor",
        "binary_data_size 9, but 0 bytes follow",
    ),
    "bytes without size": (behind(elements(b"x"), parameters={}), "invalid_tensor", "no binary_data_size, but 5 bytes"),
    "other size": (
        behind(elements(b"x"), parameters={"binary_data_size": 4}),
        "invalid_tensor",
        "binary_data_size 4, but 5 bytes follow",
    ),
    "negative size": (
        behind(b"x", parameters={"binary_data_size": -1}),
        "invalid_tensor",
        "greater than or equal to 0",
    ),
    "element beyond the end": (behind(struct.pack("<I", 2**32 - 1) + b"x"), "invalid_tensor", "4,294,967,295 bytes"),
    "cut in a size": (behind(b"\x01\x00"), "invalid_tensor", "ends before the size of element 0"),
    "bytes left over": (behind(elements(b"x") + b"yz"), "invalid_tensor", "2 bytes follow the 1 elements"),
    "pixels of another type": (
        behind(b"abc", name="pixels", datatype="FP32", shape=[1, 1, 1, 3]),
        "invalid_tensor",
        "'pixels' is FP32 [1, 1, 1, 3]; give UINT8",
    ),
    "pixels with four channels": (
        behind(b"abcd", name="pixels", datatype="UINT8", shape=[1, 1, 1, 4]),
        "invalid_tensor",
        "give UINT8 [N, height, width, 3]",
    ),
    "pixels without any": (
        behind(b"abc", name="pixels", datatype="UINT8", shape=[1, 0, 5, 3]),
        "invalid_tensor",
        "give UINT8",
    ),
    "pixels of other length": (
        behind(b"abc", name="pixels", datatype="UINT8", shape=[1, 2, 2, 3]),
        "invalid_tensor",
        "takes 12 bytes, but 3 follow",
    ),
    "pixels too long": (
        behind(b"abc", name="pixels", datatype="UINT8", shape=[1, 1, 201, 3]),
        "image_too_large",
        "201 × 1 pixels; at most 10,000 pixels and a side of 200",
    ),
    "pixels as text": (
        sent(inputs=[tensor("pixels", "UINT8", [1, 1, 1, 3], data=["1"])]),
        "invalid_tensor",
        "send it in binary form",
    ),
    "unknown output": (
        sent(inputs=[tensor(data=[ONE])], outputs=[{"name": "pth"}]),
        "invalid_tensor",
        "no output 'pth'; it has path, probability, node_probability, prediction; did you mean 'path'",
    ),
    "output twice": (
        sent(inputs=[tensor(data=[ONE])], outputs=[{"name": "path"}, {"name": "path"}]),
        "invalid_tensor",
        "asked for twice",
    ),
    "unknown parameter": (
        sent(inputs=[tensor(data=[ONE])], parameters={"topk": 3}),
        "unknown_parameter",
        "unknown parameter 'topk'",
    ),
    "parameter out of range": (
        sent(inputs=[tensor(data=[ONE])], parameters={"top_k": -1}),
        "invalid_parameter",
        "top_k='-1'",
    ),
    "parameter of another type": (
        sent(inputs=[tensor(data=[ONE])], parameters={"top_k": True}),
        "invalid_parameter",
        "top_k=True is not a number or a text",
    ),
    "binary neither true nor false": (
        sent(inputs=[tensor(data=[ONE])], parameters={"binary_data_output": 1}),
        "invalid_parameter",
        "give true or false",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_request_is_refused_with_what_is_wrong(name: str) -> None:
    (body, header), code, told = BODIES[name]
    with pytest.raises(Problem) as refused:
        parse_infer(body, header, LIMITS)
    assert refused.value.code == code, refused.value
    assert any(part in str(refused.value) for part in told.split("|")), refused.value
    assert len(str(refused.value)) < 600


def test_outputs_are_written_as_numbers_and_texts_or_behind_the_document() -> None:
    values = np.array([[0.25, 1.0], [0.5, 0.0]], dtype=np.float32)
    names = np.array([["Fruit", "Fruit/Äpfel"], ["Nut", ""]], dtype=object)
    identity = {"model_name": "m", "model_version": "1"}
    plain = infer_response(identity, [Tensor("path", names, False), Tensor("probability", values, False)])
    assert HEADER not in plain.headers and plain.media_type == "application/json"
    outputs = json.loads(bytes(plain.body))["outputs"]
    assert [output["data"] for output in outputs] == [["Fruit", "Fruit/Äpfel", "Nut", ""], [0.25, 1.0, 0.5, 0.0]]
    assert [(output["datatype"], output["shape"]) for output in outputs] == [("BYTES", [2, 2]), ("FP32", [2, 2])]
    mixed = infer_response(identity, [Tensor("path", names, True), Tensor("probability", values, True)])
    body, size = bytes(mixed.body), int(mixed.headers[HEADER])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(body[:size])["outputs"]]
    assert sizes == [4 * 4 + 5 + 12 + 3, 16] and len(body) == size + sum(sizes)
    assert body[size + sizes[0] :] == values.tobytes()
    assert body[size : size + sizes[0]] == elements(*(name.encode() for name in names.ravel()))
