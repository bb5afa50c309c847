"""The target with an 8-bit backbone. The layers that choose between prototypes stay float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from export.accuracy import answers, in_batches
from export.judging import evidence_kept, shares
from export.targets.calibrating import activation_ranges, tensors_of, weight_steps
from export.targets.onnx_files import backbone_nodes, run_onnx
from protoserve.errors import InputError

Batches: TypeAlias = Sequence[NDArray[np.uint8]]

_BATCH: Final = 8
_LAYERS: Final = ("Conv", "MatMul", "Gemm")
# What stands between convolutions is quantised with them, or a runtime converts to float32 and back.
_BETWEEN: Final = ("Clip", "Relu", "MaxPool", "Concat", "Add")
# Batches that set the ranges of activations.
_RANGING: Final = 8
# The gate requires 95 % on validation pictures; training pictures, of which the network is surer, keep more.
_EVIDENCE_KEPT: Final = 0.98
# The ridge penalty on changes of the convolution behind the backbone, relative to its mean input energy. On training
# pictures of Grocery Store that were not fitted, 1 to 3 leave the smallest error of similarities.
_RIDGE: Final = 2.0


def write_int8(
    source: Path,
    file: Path,
    calibration: NDArray[np.uint8],
    batch: int | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> None:
    """Write the ONNX file `source` with an 8-bit backbone: static, QDQ, with a step per output channel.

    No kernel can overflow with these weights (see `weight_steps`), so the file answers alike on x86 processors with
    VNNI and without.
    `calibration` uint8 [pictures, H, W, 3] are training pictures; `batch` is the only batch size that the file takes,
    or None. Two thirds of the pictures set the ranges and refit the float32 convolution after the backbone to its new
    inputs. The remaining third decides how many of the backbone's first layers stay float32: as few as keep the
    network's evidence. The first layers have the fewest weights, and their rounding errors pass through all later ones.

    Raises InputError if there is nothing to quantise or there are too few pictures.
    """
    import onnx

    # A file of a fixed batch takes only full ones.
    batches = in_batches(calibration, batch or _BATCH, whole=True)
    if len(batches) < 3:
        raise InputError(
            f"--to onnx-int8: {len(calibration)} training pictures are too few to set the ranges; add some"
        )
    third = len(batches) // 3
    fitting, held_out = batches[third:], batches[:third]
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    backbone = backbone_nodes(model)
    layers = [node.name for node in _named(model, backbone) if node.op_type in _LAYERS]
    if not layers:
        raise InputError("--to onnx-int8: the backbone has no convolution or matrix product to quantise; use onnx-fp16")
    report("quantising: measuring the ranges of activations")
    ranges = activation_ranges(model, set(backbone), fitting[:_RANGING])
    expected = answers(run_onnx(source), held_out)
    refit = _Refit(model, set(backbone), fitting)

    def with_float_layers(count: int) -> tuple[Any, float]:
        """Quantise all but so many layers; return the model, and the smallest share of kept evidence of a level."""
        report(f"quantising: trying the first {count} of {len(layers)} layers in float32")
        quantised = _quantised(model, backbone[backbone.index(layers[count]) :], ranges)
        refit.apply(quantised)
        onnx.save_model(quantised, str(file))
        kept = shares(*evidence_kept(expected, answers(run_onnx(file), held_out)))
        return quantised, min(kept.values(), default=1.0)

    # A binary search among eight cuts takes three trials; more would fit the noise of so few pictures.
    cuts = [len(layers) * eighth // 8 for eighth in range(8)]
    low, high, best = 0, len(cuts) - 1, None
    while low < high:
        middle = (low + high) // 2
        quantised, kept = with_float_layers(cuts[middle])
        if kept >= _EVIDENCE_KEPT:
            high, best = middle, quantised
        else:
            low = middle + 1
    if best is None:
        best, _ = with_float_layers(cuts[low])
    onnx.save_model(best, str(file))


def _named(model: Any, names: Sequence[str]) -> list[Any]:
    wanted = set(names)
    return [node for node in model.graph.node if node.name in wanted]


def _quantised(model: Any, nodes: Sequence[str], ranges: dict[str, tuple[np.float32, np.float32]]) -> Any:
    """Return a copy of an `onnx.ModelProto` whose `nodes`, with the weights of their layers, are 8-bit."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    from_convolutions = _from_convolutions(model)
    chosen, steps = [], {}
    for node in _named(model, nodes):
        if node.op_type in _LAYERS and node.input[1] in stored:
            axis = _output_axis(node)
            weight = numpy_helper.to_array(stored[node.input[1]])
            if weight.ndim == 2 or node.op_type == "Conv":
                steps[node.input[1]] = [
                    {"axis": axis, "scale": np.float32(step), "zero_point": 0, "quant_type": QuantType.QInt8}
                    for step in weight_steps(weight, axis)
                ]
        elif node.op_type == "Add" and not from_convolutions.issuperset(node.input):
            continue
        chosen.append(node.name)
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        quantiser = QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, dict(ranges)),
            nodes_to_quantize=chosen,
            nodes_to_exclude=[],
            op_types_to_quantize=[*_LAYERS, *_BETWEEN],
            extra_options={"TensorQuantOverrides": steps},
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
    finally:
        logging.disable(silenced)
    return quantiser.model.model


def _output_axis(node: Any) -> int:
    """The axis of a layer's output channels in its weight."""
    if node.op_type == "Gemm":
        return 0 if any(entry.name == "transB" and entry.i for entry in node.attribute) else 1
    return 0 if node.op_type == "Conv" else 1


def _from_convolutions(model: Any) -> set[str]:
    """The names of tensors that convolutions give, also through activations and sums of such tensors.

    Sums of anything else, as in a transformer, have a few values so large that 8 bits would lose the others.
    """
    found: set[str] = set()
    for node in model.graph.node:
        through = node.op_type in _BETWEEN and found.issuperset(
            node.input if node.op_type in ("Add", "Concat") else node.input[:1]
        )
        if node.op_type == "Conv" or through:
            found.update(node.output)
    return found


class _Refit:
    """Refits the first 1×1 convolution after the backbone, so that its outputs on its new inputs match the old ones.

    It is a ridge regression over all cells of the pictures, centred on the old weights. A network without such a
    convolution stays unchanged. The old outputs are computed once, for all trials.
    """

    def __init__(self, model: Any, backbone: set[str], batches: Batches) -> None:
        from onnx import numpy_helper

        self.batches = batches
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        first = next((node for node in model.graph.node if node.op_type == "Conv" and node.name not in backbone), None)
        self.layer = None
        if first is None or len(first.input) != 3:
            return
        weight, bias = (numpy_helper.to_array(stored[name]) for name in first.input[1:])
        if weight.shape[2:] != (1, 1):
            return
        self.layer = first
        self.kernel = np.vstack([weight[:, :, 0, 0].T, bias]).astype(np.float64)  # [channels + 1, outputs]
        old = tensors_of(model, [first.input[0]])
        self.outputs = [_cells(old(batch)[0]) @ self.kernel for batch in batches]

    def apply(self, model: Any) -> None:
        """Refit the convolution of a quantised `onnx.ModelProto`, in place."""
        from onnx import numpy_helper

        if self.layer is None:
            return
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        (input_name,) = [node.input[0] for node in model.graph.node if node.name == self.layer.name]
        new = tensors_of(model, [input_name])
        energy = np.zeros((len(self.kernel), len(self.kernel)))
        residual = np.zeros_like(self.kernel)
        for batch, outputs in zip(self.batches, self.outputs, strict=True):
            inputs = _cells(new(batch)[0])
            energy += inputs.T @ inputs
            residual += inputs.T @ (outputs - inputs @ self.kernel)
        ridge = _RIDGE * np.trace(energy) / len(energy) * np.eye(len(energy))
        kernel = self.kernel + np.linalg.solve(energy + ridge, residual)
        for name, array in zip(self.layer.input[1:], (kernel[:-1].T[:, :, None, None], kernel[-1]), strict=True):
            tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))


def _cells(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Flatten maps [N, channels, rows, columns] to [N · rows · columns, channels + 1]; the last column is 1."""
    flat = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1]).astype(np.float64)
    return np.hstack([flat, np.ones((len(flat), 1))])
