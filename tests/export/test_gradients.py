"""Gradients of distances beside differences, and tiles, whose distances have none outside their boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.gradients import NetworkGradients, open_gradients
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from tests.bundles import RunFactory


def test_a_small_step_along_the_gradient_raises_the_distance_by_as_much(tiny_bundle: Path, tiny_run: Path) -> None:
    gradients = open_gradients(read_bundle(tiny_bundle), tiny_run, "cpu")
    images = np.load(tiny_run / "samples.npy")[:2].astype(np.float32)
    prototypes, cells = np.array([3, 5]), np.array([10, 41])
    gradient = gradients.distance_gradient(images, prototypes, cells)
    assert gradient.shape == images.shape and gradient.dtype == np.float32
    step = 1e-2 * gradient / np.abs(gradient).max(axis=(1, 2, 3), keepdims=True)

    def distance(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            latent = gradients.network.latent(gradients.network.features(torch.from_numpy(pictures).double()))
            vectors = gradients.network.head.vectors()[prototypes]
            return (latent.flatten(2)[[0, 1], :, cells] - vectors).square().sum(1).numpy()

    gradients.network.double()
    expected = (gradient.astype(np.float64) * step).sum(axis=(1, 2, 3))
    rise = distance(images.astype(np.float64) + step) - distance(images.astype(np.float64) - step)
    gradients.network.float()
    assert rise / 2 == pytest.approx(expected, rel=1e-2)


def test_with_tiles_there_is_no_gradient_outside_the_box(run: RunFactory) -> None:
    network, _, _ = load_network(run(tile=32) / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype(np.float32)
    gradients = NetworkGradients(network, torch.device("cpu"))
    gradient = gradients.distance_gradient(images, np.array([0]), np.array([1]))[0]
    assert np.abs(gradient[:32, 32:64]).max() > 0
    gradient[:32, 32:64] = 0
    assert (gradient == 0).all()


def test_another_run_is_refused(tiny_bundle: Path, twin_run: Path) -> None:
    with pytest.raises(InputError, match="was not exported from this run"):
        open_gradients(read_bundle(tiny_bundle), twin_run, "cpu")
