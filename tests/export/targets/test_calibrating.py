"""Ranges of activations, and steps of weights at which no kernel overflows."""

from itertools import product

import numpy as np
import onnx
import pytest

from export.targets.calibrating import activation_ranges, weight_steps
from protoserve.bundle.folder import Bundle


@pytest.mark.parametrize("shape", [(5, 8, 3, 3), (6, 1, 3, 3), (4, 33, 1, 1), (7, 16), (3, 1, 1, 1)])
def test_no_two_neighbouring_products_overflow_sixteen_bits(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    steps = weight_steps(weight, 0)
    whole = np.round(weight / steps.reshape(-1, *[1] * (len(shape) - 1))).astype(np.int64)
    assert np.abs(whole).max() <= 127
    # As kernels read them: channels first and channels last.
    for order in (whole, np.moveaxis(whole, 1, -1)):
        flat = order.reshape(len(whole), -1)
        for low, high in product((0, 255), repeat=2):
            sums = low * flat[:, :-1] + high * flat[:, 1:]
            assert np.abs(sums).max(initial=0) < 2**15


def test_a_step_is_as_fine_as_neighbours_allow() -> None:
    weight = np.array([[1.0, -1.0, 0.9, -0.2], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    steps = weight_steps(weight, 0)
    np.testing.assert_allclose(steps[:2], [1 / 127, 2 / 127], rtol=1e-6)
    assert steps[2] > 0
    np.testing.assert_array_equal(weight_steps(weight.T, 1), steps)


def test_ranges_hold_zero_and_almost_all_values(edge: Bundle) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(edge.file("onnx")))
    # The network's first nodes: normalisation in float32.
    nodes = {node.name for node in model.graph.node[:6]}
    pictures = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8)
    ranges = activation_ranges(model, nodes, [pictures])
    assert ranges
    for low, high in ranges.values():
        assert low <= 0 <= high
    grey = next(range_ for range_ in ranges.values() if range_[1] > 200)
    assert grey[0] == 0 and 250 <= grey[1] <= 255
