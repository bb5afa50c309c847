"""The bundles whose files the tests of the export run, and the network's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.bundling import export_bundle
from export.sources import EdgeOptions
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.graph_signature import named_arrays
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import open_run


@pytest.fixture(scope="session")
def network(tiny_run: Path) -> PrototypeNetwork:
    """The network of `tiny_run`. Tests must not change it: they copy it first."""
    network, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    return network


@pytest.fixture(scope="session")
def samples(tiny_run: Path) -> NDArray[np.uint8]:
    """The source image of every prototype, in their order: uint8 [prototypes, 64, 96, 3]."""
    samples: NDArray[np.uint8] = np.load(tiny_run / "samples.npy")
    return samples


@pytest.fixture(scope="session")
def edge(edge_bundle: Path) -> Bundle:
    """A bundle with all targets but `web`, which take any batch where the format allows it."""
    return read_bundle(edge_bundle)


@pytest.fixture(scope="session")
def resizing(resizing_bundle: Path) -> Bundle:
    """A bundle whose files for the edge take one picture of any size."""
    return read_bundle(resizing_bundle)


@pytest.fixture(scope="session")
def expected(
    network: PrototypeNetwork, samples: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], Mapping[str, NDArray[Any]]]:
    """(five pictures, the network's answers to them)"""
    with torch.inference_mode():
        outputs = network.explain(torch.from_numpy(samples[:5]), 9)
    return samples[:5], {name: output.numpy() for name, output in named_arrays(outputs).items()}


@pytest.fixture(scope="session")
def small(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for batches of exactly two pictures of 32 × 48 pixels; the network learned from 64 × 96."""
    directory = tmp_path_factory.mktemp("bundles") / "small"
    targets = ("onnx", "onnx-edge", "executorch")
    return export_bundle(open_run(tiny_run), directory, targets, options=EdgeOptions(batch=2), size=(32, 48))
