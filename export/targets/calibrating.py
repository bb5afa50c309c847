"""What an 8-bit backbone is scaled by: the ranges of its activations, and the steps of its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.graph_signature import INPUT

# The share of a tensor's values, in percent, that its range holds at either end; the others are clipped, so that these
# get a finer scale.
PERCENTILE: Final = 99.99
# Values of a tensor that are looked at in one picture.
_SAMPLED: Final = 4096
# Weights are at most this many steps, and two neighbours of one sign together as well: see `weight_steps`.
LARGEST: Final = 127


def activation_ranges(
    model: Any, nodes: Collection[str], batches: Sequence[NDArray[np.uint8]]
) -> dict[str, tuple[np.float32, np.float32]]:
    """Measure the range of every float32 tensor that the `nodes` of an `onnx.ModelProto` read or write, in one pass.

    Each range holds 0 and, at either end, `PERCENTILE` of the values in a random sample of each picture's. `batches`
    are uint8 [N, H, W, 3]. The model's shapes must be inferred.
    """
    import onnx

    stored = {tensor.name for tensor in model.graph.initializer}
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in model.graph.value_info if value.name not in stored
    }
    names = dict.fromkeys(
        name
        for node in model.graph.node
        if node.name in nodes
        for name in (*node.input, *node.output)
        if kinds.get(name) == onnx.TensorProto.FLOAT
    )
    run = tensors_of(model, list(names))
    generator = np.random.default_rng(0)
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for batch in batches:
        for name, tensor in zip(names, run(batch), strict=True):
            flat = tensor.ravel()
            samples[name].append(flat[generator.integers(0, flat.size, _SAMPLED * len(batch))])
    ranges = {}
    for name, parts in samples.items():
        low, high = np.quantile(np.concatenate(parts), [1 - PERCENTILE / 100, PERCENTILE / 100])
        ranges[name] = (np.float32(min(low, 0.0)), np.float32(max(high, 0.0)))
    return ranges


def weight_steps(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return a step per output channel, float32 [channels], that lets no sum of 16 bits overflow.

    Processors without an instruction for 8-bit dot products (x86 before VNNI) add two neighbouring products of an
    unsigned 8-bit activation and a signed 8-bit weight in 16 bits, and cut off what is larger. Two neighbouring weights
    of one sign may therefore be at most 128 together: 255 · 128 < 2¹⁵. The usual remedy, weights of 7 bits, assumes
    that the two largest weights of a channel are neighbours. Here each channel's step is the finest at which its own
    neighbours fit, in either order that kernels read them (channels first or last), with half a step each for rounding.

    `axis` is that of the output channels; the others are those of a convolution's weight [outputs, inputs, rows,
    columns] or the single one of a matrix. Source: Intel's oneDNN, "Nuances of int8 computations".
    """
    channels = np.moveaxis(weight, axis, 0)
    count = len(channels)
    steps = np.abs(channels).reshape(count, -1).max(1) / LARGEST
    for order in (channels, np.moveaxis(channels, 1, -1)):
        flat = order.reshape(count, -1)
        if flat.shape[1] < 2:
            continue
        for signed in (np.maximum(flat, 0.0), np.maximum(-flat, 0.0)):
            steps = np.maximum(steps, (signed[:, 1:] + signed[:, :-1]).max(1) / LARGEST)
    return np.asarray(np.maximum(steps, np.finfo(np.float32).tiny * 2**20), dtype=np.float32)


def tensors_of(model: Any, names: Sequence[str]) -> Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    """Make a function that maps pictures uint8 [N, H, W, 3] to inner float32 tensors of an `onnx.ModelProto`."""
    import onnx
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.ClearField("output")
    for name in names:
        opened.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(pictures: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [np.asarray(tensor) for tensor in session.run(list(names), {INPUT: pictures})]

    return run
