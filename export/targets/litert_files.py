"""The target for Android and small devices: a LiteRT file (formerly TensorFlow Lite)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.parity import Runtime
from export.targets.converters import convert
from export.targets.torch_files import write_torch_export
from protoserve.errors import MissingExtraError
from protoserve.graph_signature import INPUT, OUTPUT_NAMES

PACKAGE: Final = "litert-torch"
_IDENTIFIER: Final = b"TFL3"


def write_litert(
    graph: torch.nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str], python: Path
) -> None:
    """Convert the graph with the `python` of the converter's environment, for pictures of the `example`'s shape.

    Inputs and outputs get their names; each entry of `metadata` becomes a buffer of the file with its name. Raises
    InputError if the conversion fails, MissingExtraError if LiteRT is not installed.
    """
    with TemporaryDirectory() as folder:
        program, draft = Path(folder) / "graph.pt2", Path(folder) / "graph.tflite"
        write_torch_export(graph, example, {}, program, {})
        convert(python, "litert_converting.py", [str(program), str(draft)])
        finish(draft, file, metadata)


def finish(source: Path, file: Path, metadata: Mapping[str, str]) -> None:
    """Write the converter's file `source` with our names of inputs and outputs and with the metadata.

    Raises MissingExtraError if LiteRT is not installed.
    """
    with _litert():
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    tensors = model.subgraphs[0].tensors
    (signature,) = model.signatureDefs
    for entries, names in ((signature.inputs, [INPUT]), (signature.outputs, OUTPUT_NAMES)):
        # The converter numbers them: args_0, output_0, output_1, …
        numbered = sorted(entries, key=lambda entry: int(entry.name.decode().rsplit("_", 1)[1]))
        for entry, name in zip(numbered, names, strict=True):
            entry.name = tensors[entry.tensorIndex].name = name.encode()
    model.metadata = model.metadata or []
    for name, text in metadata.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), dtype=np.uint8)
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    builder = flatbuffers.Builder(source.stat().st_size)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    file.write_bytes(bytes(builder.Output()))


def run_litert(file: Path) -> Runtime:
    """Open a LiteRT file in its runtime, on the CPU; integers are given as int64. Raises MissingExtraError if LiteRT is
    not installed."""
    with _litert():
        from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    signature = interpreter.get_signature_runner()

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        outputs = signature(**{INPUT: pictures})
        return {
            name: outputs[name].astype(np.int64) if outputs[name].dtype.kind == "i" else outputs[name].copy()
            for name in OUTPUT_NAMES
        }

    return run


def stored_text(file: Path, name: str) -> str:
    """Read an entry of the file's metadata; raises MissingExtraError if LiteRT is not installed."""
    with _litert():
        from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(file.read_bytes(), 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == name.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    raise KeyError(name)


@contextmanager
def _litert() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError("the target litert", "targets") from error
