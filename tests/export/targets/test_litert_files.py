"""LiteRT files: names, metadata, a missing runtime, and the whole way where the converter is installed."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from export.bundling import export_bundle
from export.records import read_parity
from export.targets import litert_files
from export.targets.converters import default_folder
from protoserve.errors import MissingExtraError
from protoserve.graph_signature import INPUT, OUTPUT_NAMES
from protoserve.run.folder import open_run
from tests.export.stored import stored_in

CONVERTERS = Path(os.environ.get("PROTOSERVE_CONVERTERS", default_folder()))


def written_by_hand(file: Path) -> None:
    """A file as the converter writes it, whose outputs, numbered backwards, are all the input as float32."""
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

    def tensor(kind: int) -> object:
        made = schema.TensorT()
        made.shape, made.type, made.buffer, made.name = np.array([1, 2, 2, 3], dtype=np.int32), kind, 0, b"x"
        return made

    def entry(name: str, index: int) -> object:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name.encode(), index
        return made

    code, node, graph = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
    node.inputs, node.outputs = [0], [1]
    graph.tensors = [tensor(schema.TensorType.UINT8), tensor(schema.TensorType.FLOAT32)]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [node]
    signature, model = schema.SignatureDefT(), schema.ModelT()
    signature.signatureKey, signature.inputs = b"serving_default", [entry("args_0", 0)]
    signature.outputs = [entry(f"output_{number}", 1) for number in reversed(range(len(OUTPUT_NAMES)))]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, model.signatureDefs = [schema.BufferT()], [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(bytes(builder.Output()))


def test_a_finished_file_has_our_names_and_texts(tmp_path: Path) -> None:
    written_by_hand(tmp_path / "draft.tflite")
    file = tmp_path / "model.tflite"
    litert_files.finish(tmp_path / "draft.tflite", file, {"nodes": "Käse\nBrot", "options": "{}"})
    assert litert_files.stored_text(file, "nodes") == "Käse\nBrot"
    assert litert_files.stored_text(file, "options") == "{}"
    with pytest.raises(KeyError):
        litert_files.stored_text(file, "absent")
    picture = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    outputs = litert_files.run_litert(file)(picture)
    assert list(outputs) == list(OUTPUT_NAMES)
    np.testing.assert_array_equal(outputs["logit"], picture.astype(np.float32))
    from ai_edge_litert.interpreter import Interpreter

    (signature,) = Interpreter(model_path=str(file)).get_signature_list().values()
    assert signature["inputs"] == [INPUT] and set(signature["outputs"]) == set(OUTPUT_NAMES)


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"protoserve\[targets\]"):
        litert_files.run_litert(tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.skipif(
    not (CONVERTERS / "litert" / "installed").is_file(),
    reason="litert's converter is not installed; export any run --to onnx,litert, or set PROTOSERVE_CONVERTERS",
)
def test_the_whole_graph_answers_like_the_network(tiny_run: Path, tmp_path: Path) -> None:
    """The converter starts a process that imports torch and compiles the graph: a minute."""
    pytest.importorskip("ai_edge_litert")
    bundle = export_bundle(open_run(tiny_run), tmp_path / "bundle", ("onnx", "litert"), converters=CONVERTERS)
    report = read_parity(bundle.directory)["litert"]
    assert list(report.batches) == [1] and report.precision == "float32"
    stored = stored_in("litert", bundle.file("litert"))
    assert stored["nodes"].split("\n") == list(bundle.taxonomy.names)
    assert json.loads(stored["options"])["batch"] == 1
