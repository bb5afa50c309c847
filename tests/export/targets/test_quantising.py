"""The 8-bit backbone: its extent, its accuracy, and the inputs that are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.bundling import export_bundle
from export.records import read_parity
from export.targets import quantising
from export.targets.onnx_files import run_onnx, run_unoptimised
from protoserve.bundle.folder import Bundle
from protoserve.errors import InputError, ParityError
from protoserve.run.folder import open_run


def test_eight_bits_stop_at_the_backbone(edge: Bundle) -> None:
    model = onnx.load(edge.file("onnx-int8"))
    onnx.checker.check_model(model, full_check=True)
    source = onnx.load(edge.file("onnx"))
    # The names of its weights tell which convolutions are the backbone's.
    backbone = {node.name for node in source.graph.node if node.op_type == "Conv" and "backbone" in node.input[1]}
    assert 0 < len(backbone) < sum(node.op_type == "Conv" for node in source.graph.node)
    of_output = {name: node for node in model.graph.node for name in node.output}
    restored = {name for name, node in of_output.items() if node.op_type == "DequantizeLinear"}
    reading = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in restored]
    assert reading and {node.name for node in reading} <= backbone
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [of_output[node.input[1]].input[0] for node in reading]
    assert all(kinds[name] == onnx.TensorProto.INT8 for name in weights)


def test_no_neighbouring_weights_overflow_sixteen_bits(edge: Bundle) -> None:
    model = onnx.load(edge.file("onnx-int8"))
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(np.int64)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert weights
    for weight in weights:
        for order in (weight, np.moveaxis(weight, 1, -1)):
            flat = order.reshape(len(weight), -1)
            for signed in (np.maximum(flat, 0), np.maximum(-flat, 0)):
                assert 255 * (signed[:, 1:] + signed[:, :-1]).max(initial=0) < 2**15


def test_the_file_answers_alike_with_and_without_graph_optimisation(edge: Bundle, samples: NDArray[np.uint8]) -> None:
    optimised, plain = run_onnx(edge.file("onnx-int8")), run_unoptimised(edge.file("onnx-int8"))
    first, second = optimised(samples), plain(samples)
    # Integer kernels round once more at sums; a kernel that overflows would be off by much more.
    assert np.abs(first["similarity"] - second["similarity"]).mean() < 0.02
    report = read_parity(edge.directory)["onnx-int8"].validation
    assert report is not None and report.unoptimised is not None and report.reencoded is not None
    assert min(report.unoptimised.evidence_kept.values()) >= 0.95


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
