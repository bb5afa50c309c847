"""The ONNX file with its backbone in 8 bits; what decides between prototypes stays float32."""

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
# Of a layer's activations a hundred-thousandth is clipped, which spares a bit for all others.
_PERCENTILE: Final = 99.999
# The gate asks 95 % on validation pictures; those that the network learned from are kinder by about two points.
_EVIDENCE_KEPT: Final = 0.98
# How strongly the convolution after the backbone is held to its weights, relative to its mean input energy.
_RIDGE: Final = 0.3


def write_int8(
    source: Path,
    file: Path,
    calibration: NDArray[np.uint8],
    batch: int | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> None:
    """Write the ONNX file `source` with its backbone in 8 bits: static, QDQ, a scale per output channel.

    `calibration` uint8 [pictures, H, W, 3] are pictures that the network learned from; `batch` says how many at a time
    the file takes, if it takes no other number. The first two thirds set the
    ranges, and refit the float32 convolution behind the backbone to what the 8 bits now give it. The last third decides
    how many of the backbone's first layers stay float32: they have the fewest weights, and their rounding goes through
    all that follows. As few stay as the network's evidence needs.

    Raises InputError where there is nothing to quantise or there are too few pictures.
    """
    import onnx

    # Whole batches, for the calibrator takes no others.
    batches = in_batches(calibration, batch or _BATCH, whole=True)
    if len(batches) < 3:
        raise InputError(f"8 bits need more than {len(calibration)} training pictures for their ranges; add some")
    third = len(batches) // 3
    learned, held = batches[third:], batches[:third]
    with TemporaryDirectory() as folder:
        shaped, ranges = Path(folder) / "shaped.onnx", Path(folder) / "ranges.json"
        model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
        onnx.save_model(model, str(shaped))
        backbone = set(backbone_nodes(model))
        layers = [node.name for node in model.graph.node if node.name in backbone and node.op_type in _LAYERS]
        if not layers:
            raise InputError("the backbone holds no convolution or product to bring to 8 bits; use onnx-fp16")
        expected = answers(run_onnx(source), held)

        def agreement(kept: int) -> float:
            report(f"8 bits: trying with the first {kept} of {len(layers)} layers in float32")
            _quantise(shaped, file, layers[kept:], learned, ranges)
            _refit(shaped, file, backbone, learned[: len(learned) // 2])
            kept_at = evidence_kept(*first_evidence(expected, answers(run_onnx(file), held)))
            return min(kept_at.values(), default=1.0)

        # Eight places to cut at are three trials; finer ones would follow the noise of so few pictures.
        places = [len(layers) * eighth // 8 for eighth in range(8)]
        low, high, written = 0, len(places) - 1, -1
        while low < high:
            written = (low + high) // 2
            if agreement(places[written]) >= _EVIDENCE_KEPT:
                high = written
            else:
                low = written + 1
        if written != low:
            agreement(places[low])


def _quantise(source: Path, file: Path, layers: Sequence[str], batches: Batches, ranges: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

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
            # The ranges do not depend on which layers are brought to 8 bits: they are found once.
            calibration_cache_path=ranges,
        )


def _refit(source: Path, file: Path, backbone: set[str], batches: Batches) -> None:
    """Fit the first 1×1 convolution after the backbone to its new inputs, so that its outputs are nearest the old ones.

    Least squares over all cells of the pictures, held to the old weights; a network without such a convolution stays as
    it is.
    """
    import onnx
    from onnx import numpy_helper

    before, after = onnx.load(str(source)), onnx.load(str(file))
    tensors = {tensor.name: tensor for tensor in after.graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    places = [node for node in before.graph.node if node.op_type == "Conv" and node.name not in backbone]
    if not places or stored[places[0].input[1]].shape[2:] != (1, 1) or len(places[0].input) != 3:
        return
    place = places[0]
    weight, bias = stored[place.input[1]], stored[place.input[2]]
    kernel = np.vstack([weight[:, :, 0, 0].T, bias]).astype(np.float64)  # [channels + 1, outputs]
    (found,) = [node.input[0] for node in after.graph.node if node.name == place.name]
    old, new = _tensor_of(before, place.input[0]), _tensor_of(after, found)
    energy = np.zeros((len(kernel), len(kernel)))
    missing = np.zeros_like(kernel)
    for batch in batches:
        wanted, given = _cells(old(batch)) @ kernel, _cells(new(batch))
        energy += given.T @ given
        missing += given.T @ (wanted - given @ kernel)
    hold = _RIDGE * np.trace(energy) / len(energy) * np.eye(len(energy))
    kernel += np.linalg.solve(energy + hold, missing)
    for name, array in ((place.input[1], kernel[:-1].T[:, :, None, None]), (place.input[2], kernel[-1])):
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
    onnx.save_model(after, str(file))


def _tensor_of(model: Any, name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """A function from pictures to one inner tensor of the model, as if it were its only output."""
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
        (found,) = session.run([name], {INPUT: pictures})
        return np.asarray(found)

    return run


def _cells(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, channels, rows, columns] → [cells, channels + 1], the last column of ones."""
    flat = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1]).astype(np.float64)
    return np.hstack([flat, np.ones((len(flat), 1))])
