"""The target with an 8-bit backbone. The layers that choose between prototypes stay float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from export.accuracy import answers, evidence_kept, first_evidence, in_batches
from export.targets.onnx_files import backbone_nodes, run_onnx, silent
from protoserve.errors import InputError
from protoserve.graph_signature import INPUT

Batches: TypeAlias = Sequence[NDArray[np.uint8]]

_BATCH: Final = 8
_LAYERS: Final = ("Conv", "MatMul", "Gemm")
# The percentile clips 0.001 % of a layer's activations, so that the others get a finer scale.
_PERCENTILE: Final = 99.999
# The gate requires 95 % on validation pictures; training pictures score about two points higher.
_EVIDENCE_KEPT: Final = 0.98
# The ridge penalty on changes of the convolution behind the backbone, relative to its mean input energy.
_RIDGE: Final = 0.3


def write_int8(
    source: Path,
    file: Path,
    calibration: NDArray[np.uint8],
    batch: int | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> None:
    """Write the ONNX file `source` with an 8-bit backbone: static, QDQ, with a scale per output channel.

    `calibration` uint8 [pictures, H, W, 3] are training pictures; `batch` is the only batch size that the file takes,
    or None. Two thirds of the pictures set the ranges and refit the float32 convolution after the backbone to its new
    inputs. The remaining third decides how many of the backbone's first layers stay float32: as few as keep the
    network's evidence. The first layers have the fewest weights, and their rounding errors pass through all later ones.

    Raises InputError if there is nothing to quantise or there are too few pictures.
    """
    import onnx

    # The calibrator takes only full batches.
    batches = in_batches(calibration, batch or _BATCH, whole=True)
    if len(batches) < 3:
        raise InputError(
            f"--to onnx-int8: {len(calibration)} training pictures are too few to set the ranges; add some"
        )
    third = len(batches) // 3
    fitting, held_out = batches[third:], batches[:third]
    with TemporaryDirectory() as folder:
        shaped, ranges = Path(folder) / "shaped.onnx", Path(folder) / "ranges.json"
        model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
        onnx.save_model(model, str(shaped))
        backbone = set(backbone_nodes(model))
        layers = [node.name for node in model.graph.node if node.name in backbone and node.op_type in _LAYERS]
        if not layers:
            raise InputError(
                "--to onnx-int8: the backbone has no convolution or matrix product to quantise; use onnx-fp16"
            )
        expected = answers(run_onnx(source), held_out)

        def agreement(float_layers: int) -> float:
            """Write the file with so many layers in float32; return the smallest share of kept evidence of a level."""
            report(f"quantising: trying the first {float_layers} of {len(layers)} layers in float32")
            _quantise(shaped, file, layers[float_layers:], fitting, ranges)
            _refit(shaped, file, backbone, fitting[: len(fitting) // 2])
            shares = evidence_kept(*first_evidence(expected, answers(run_onnx(file), held_out)))
            return min(shares.values(), default=1.0)

        # A binary search among eight cuts takes three trials; more would fit the noise of so few pictures.
        cuts = [len(layers) * eighth // 8 for eighth in range(8)]
        low, high, written = 0, len(cuts) - 1, -1
        while low < high:
            written = (low + high) // 2
            if agreement(cuts[written]) >= _EVIDENCE_KEPT:
                high = written
            else:
                low = written + 1
        if written != low:
            agreement(cuts[low])


def _quantise(source: Path, file: Path, layers: Sequence[str], batches: Batches, ranges: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    # onnxruntime has no type annotations, so mypy sees a subclass of Any.
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    with silent():
        quantize_static(
            str(source),
            str(file),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            nodes_to_quantize=list(layers),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": _PERCENTILE},
            # The ranges do not depend on the choice of quantised layers, so they are computed once.
            calibration_cache_path=ranges,
        )


def _refit(source: Path, file: Path, backbone: set[str], batches: Batches) -> None:
    """Refit the first 1×1 convolution after the backbone, so that its outputs on its new inputs match the old ones.

    It is a ridge regression over all cells of the pictures, centred on the old weights. A network without such a
    convolution stays unchanged.
    """
    import onnx
    from onnx import numpy_helper

    before, after = onnx.load(str(source)), onnx.load(str(file))
    tensors = {tensor.name: tensor for tensor in after.graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    candidates = [node for node in before.graph.node if node.op_type == "Conv" and node.name not in backbone]
    if not candidates or stored[candidates[0].input[1]].shape[2:] != (1, 1) or len(candidates[0].input) != 3:
        return
    layer = candidates[0]
    weight, bias = stored[layer.input[1]], stored[layer.input[2]]
    kernel = np.vstack([weight[:, :, 0, 0].T, bias]).astype(np.float64)  # [channels + 1, outputs]
    (input_name,) = [node.input[0] for node in after.graph.node if node.name == layer.name]
    old, new = _tensor_of(before, layer.input[0]), _tensor_of(after, input_name)
    energy = np.zeros((len(kernel), len(kernel)))
    residual = np.zeros_like(kernel)
    for batch in batches:
        outputs, inputs = _cells(old(batch)) @ kernel, _cells(new(batch))
        energy += inputs.T @ inputs
        residual += inputs.T @ (outputs - inputs @ kernel)
    ridge = _RIDGE * np.trace(energy) / len(energy) * np.eye(len(energy))
    kernel += np.linalg.solve(energy + ridge, residual)
    for name, array in ((layer.input[1], kernel[:-1].T[:, :, None, None]), (layer.input[2], kernel[-1])):
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
    onnx.save_model(after, str(file))


def _tensor_of(model: Any, name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Make a function that maps pictures uint8 [N, H, W, 3] to an inner tensor of the model."""
    import onnx
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.ClearField("output")
    opened.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        (tensor,) = session.run([name], {INPUT: pictures})
        return np.asarray(tensor)

    return run


def _cells(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Flatten maps [N, channels, rows, columns] to [N · rows · columns, channels + 1]; the last column is 1."""
    flat = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1]).astype(np.float64)
    return np.hstack([flat, np.ones((len(flat), 1))])
