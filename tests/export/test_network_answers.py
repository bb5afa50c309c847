"""The network's answers, kept by picture."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.network_answers import NetworkAnswers
from protoserve.networks.network import PrototypeNetwork


def test_each_picture_is_answered_once_in_any_order(
    network: PrototypeNetwork, samples: NDArray[np.uint8], tiny_run: Path
) -> None:
    runs: list[int] = []
    handle = network.backbone.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    try:
        answers = NetworkAnswers(network, 3)
        first, latent = answers.of(samples[:4])
        again, other = answers.of(samples[[3, 0, 4, 3]])
    finally:
        handle.remove()
    assert runs == [4, 1]
    for name, array in first.items():
        np.testing.assert_array_equal(again[name][[0, 1, 3]], array[[3, 0, 3]])
    assert torch.equal(other[1], latent[0])
    with torch.inference_mode():
        expected = network.explain(torch.from_numpy(samples[:4]), 3)
    np.testing.assert_array_equal(first["path"], expected.path.numpy())
    np.testing.assert_allclose(first["similarity"], expected.similarity.numpy(), atol=1e-5)
