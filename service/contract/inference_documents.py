"""The documents of the Open Inference Protocol, as frozen pydantic models.

`service.contract.tensors` reads and writes them.
https://github.com/kserve/open-inference-protocol describes them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from protoserve.schema import Contract

Scalar: TypeAlias = bool | int | float | str


class TensorParameters(Contract):
    """`binary_data_size` is the number of bytes behind the JSON document that hold the tensor."""

    binary_data_size: int | None = Field(default=None, ge=0)


class InputTensor(Contract):
    """An input: `image`, encoded pictures as BYTES [N] or [N, 1], in binary form or in base64; or `pixels`, RGB
    pictures as UINT8 [N, height, width, 3], in binary form."""

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: TensorParameters = TensorParameters()
    data: list[str] | list[list[str]] | None = Field(
        default=None, description="the pictures in base64, where they are not in binary form"
    )


class OutputParameters(Contract):
    """Whether the output comes in binary form; the default is the request's `binary_data_output`."""

    binary_data: bool | None = None


class RequestedOutput(Contract):
    """An output that the request asks for: `path`, `probability`, `node_probability` or `prediction`."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferDocument(Contract):
    """A request for predictions. Its `parameters` are those of `/v1/predict`'s query, and `binary_data_output`."""

    id: str | None = Field(default=None, max_length=1000, description="returned with the answer")
    parameters: dict[str, Scalar] = Field(default={})
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = Field(default=None, description="by default all, in their order")


class OutputTensor(Contract):
    """An output. `path` BYTES [N, levels] are the nodes of the predicted path, empty below its end; `probability` FP32
    [N, levels] theirs, 0 below; `node_probability` FP32 [N, nodes] those of all nodes, in the order of /v1/taxonomy;
    `prediction` BYTES [N] the documents of /v1/predict, as JSON."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[float] | list[str] = Field(description="row by row")


class ServerDocument(Contract):
    """The server: its name, its version, and the protocol's extensions that it supports."""

    name: str
    version: str
    extensions: list[str]


class LiveDocument(Contract):
    """Whether the process is alive."""

    live: bool


class ReadyDocument(Contract):
    """Whether the server can answer."""

    ready: bool


class ModelReadyDocument(Contract):
    """Whether a model can answer."""

    name: str
    ready: bool


class TensorDocument(Contract):
    """An input or an output: its type and its shape, in which −1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class MetadataDocument(Contract):
    """A model's version, inputs and outputs. A request has one of the inputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDocument]
    outputs: list[TensorDocument]


class InferResponse(Contract):
    """The answer to a request for predictions. With binary outputs, it is the document without their `data`, followed
    by them."""

    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[OutputTensor]


def metadata(name: str, version: str, levels: int, nodes: int) -> MetadataDocument:
    """Describe a model with so many levels and nodes."""
    shapes = {"image": [-1], "pixels": [-1, -1, -1, 3]}
    outputs = {"path": [-1, levels], "probability": [-1, levels], "node_probability": [-1, nodes], "prediction": [-1]}
    texts = ("image", "path", "prediction")

    def described(shapes: dict[str, list[int]], numbers: str) -> list[TensorDocument]:
        return [
            TensorDocument(name=name, datatype="BYTES" if name in texts else numbers, shape=shape)
            for name, shape in shapes.items()
        ]

    return MetadataDocument(
        name=name,
        versions=[version],
        platform="protoserve",
        inputs=described(shapes, "UINT8"),
        outputs=described(outputs, "FP32"),
    )
