"""Calibration of a run's network, and what it must not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import NetworkDescription, build, load_network, save_network
from protoserve.networks.network import LinearNetwork
from protoserve.taxonomy import Taxonomy

# ---- the plain classifier --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a plain classifier at temperature 2."""
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B"])
    rule = InputRule(height=32, width=32, resize="stretch")
    description = NetworkDescription(kind="linear", taxonomy=taxonomy.to_dict(), input=rule, backbone="resnet18")
    torch.manual_seed(0)
    network = build(description)
    assert isinstance(network, LinearNetwork)
    network.temperature.fill_(2.0)
    file = tmp_path_factory.mktemp("linear") / "model.pt"
    save_network(file, network, description)
    return file


def test_the_plain_classifier_divides_its_logits(linear_file: Path) -> None:
    network, _, _ = load_network(linear_file)
    assert isinstance(network, LinearNetwork)
    features = torch.randn(5, network.linear.in_features)
    with torch.inference_mode():
        found = network.log_probability(features).exp().numpy()
        logits = network.linear(features).double().numpy()
    leaves = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, leaves @ network.taxonomy.leaves_below.T, rtol=1e-5)


def test_a_checkpoint_from_before_calibration_has_temperature_1(linear_file: Path, tmp_path: Path) -> None:
    content = torch.load(linear_file, weights_only=True)
    del content["state"]["temperature"]
    torch.save(content, tmp_path / "model.pt")
    network, _, _ = load_network(tmp_path / "model.pt")
    assert isinstance(network, LinearNetwork)
    assert network.temperature.tolist() == [1.0]
