"""The 8-bit backbone: its extent, its accuracy, and the inputs that are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.bundling import export_bundle
from export.targets import quantising
from protoserve.bundle.folder import Bundle
from protoserve.errors import InputError, ParityError
from protoserve.run.folder import open_run


def test_eight_bits_stop_at_the_backbone(edge: Bundle) -> None:
    model = onnx.load(edge.file("onnx-int8"))
    source = onnx.load(edge.file("onnx"))
    # The names of its weights tell which convolutions are the backbone's.
    backbone = {node.name for node in source.graph.node if node.op_type == "Conv" and "backbone" in node.input[1]}
    assert 0 < len(backbone) < sum(node.op_type == "Conv" for node in source.graph.node)
    of_output = {name: node for node in model.graph.node for name in node.output}
    restored = {name for name, node in of_output.items() if node.op_type == "DequantizeLinear"}
    reading = [node for node in model.graph.node if restored & set(node.input) and node.op_type == "Conv"]
    assert reading and {node.name for node in reading} <= backbone
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [of_output[node.input[1]].input[0] for node in reading]
    assert all(kinds[name] == onnx.TensorProto.INT8 for name in weights)


def test_eight_bits_that_miss_are_refused_with_their_figures(
    learned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black pictures for calibration give useless ranges."""
    run, data = learned
    honest = quantising.write_int8

    def blind(
        source: Path,
        file: Path,
        calibration: NDArray[np.uint8],
        batch: int | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        monkeypatch.setattr(quantising, "_EVIDENCE_KEPT", 0.0)
        honest(source, file, np.zeros_like(calibration), batch, report)

    monkeypatch.setattr(quantising, "write_int8", blind)
    with pytest.raises(ParityError, match=r"parity: .+ \d"):
        export_bundle(open_run(run), tmp_path / "bundle", ("onnx", "onnx-int8"), data=data)
    assert list(tmp_path.iterdir()) == []


def test_too_few_pictures_are_refused(edge: Bundle, tmp_path: Path) -> None:
    pictures = np.zeros((16, 64, 96, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="16 training pictures are too few"):
        quantising.write_int8(edge.file("onnx"), tmp_path / "model.int8.onnx", pictures)
    assert list(tmp_path.iterdir()) == []
