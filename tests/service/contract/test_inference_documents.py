"""The documents of the Open Inference Protocol."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.contract.inference_documents import InferDocument, metadata


def test_metadata_states_the_shapes() -> None:
    document = metadata("m", "sha256:0", 3, 40)
    shapes = {tensor.name: (tensor.datatype, tensor.shape) for tensor in (*document.inputs, *document.outputs)}
    assert shapes == {
        "image": ("BYTES", [-1]),
        "pixels": ("UINT8", [-1, -1, -1, 3]),
        "path": ("BYTES", [-1, 3]),
        "probability": ("FP32", [-1, 3]),
        "node_probability": ("FP32", [-1, 40]),
        "prediction": ("BYTES", [-1]),
    }


def test_numbers_are_not_read_from_text_and_unknown_fields_are_refused() -> None:
    asked = '{"inputs": [{"name": "image", "shape": [%s], "datatype": "BYTES"%s}]}'
    assert InferDocument.model_validate_json(asked % ("1", ""), strict=True).inputs[0].shape == [1]
    for shape, more in (('"1"', ""), ("1.0", ""), ("1", ', "size": 3')):
        with pytest.raises(ValidationError):
            InferDocument.model_validate_json(asked % (shape, more), strict=True)
