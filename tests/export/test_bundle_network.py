"""A bundle's network from its run, and runs that it is not from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle_network import network_of_bundle, set_weights
from export.bundling import head_weights
from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError
from protoserve.networks.model_file import load_network, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import open_run
from tests.protoserve.networks.heads import head_over_random_tree


def test_the_network_has_the_bundles_last_layers_and_switches(tiny_bundle: Path, tiny_run: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    link = CurationLink(before="sha256:0", disabled=[], required=[4], reason="x", by="Ann", at="2026-01-01")
    found = network_of_bundle(
        Bundle(bundle.directory, bundle.manifest.model_copy(update={"curation": [link]})), open_run(tiny_run)
    )
    expected, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(expected, PrototypeNetwork)
    assert torch.equal(found.network.head.effective_weight(), expected.head.effective_weight())
    assert found.network.head.off is None and (found.samples == np.load(tiny_run / "samples.npy")).all()


@pytest.mark.parametrize("seed", range(5))
def test_weights_survive_the_way_through_a_bundle(seed: int) -> None:
    head, other = head_over_random_tree(seed), head_over_random_tree(seed)
    with torch.no_grad():
        other.weight.zero_()
        set_weights(other, head_weights(head))
    assert torch.equal(other.effective_weight(), head.effective_weight())


def test_another_run_is_refused(tiny_bundle: Path, twin_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    with pytest.raises(InputError, match="was not exported from this run: their answers differ"):
        network_of_bundle(bundle, open_run(twin_run))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    network, description, sources = load_network(run / "model.pt")
    assert sources is not None
    save_network(run / "model.pt", network, description, [*sources[1:], sources[0]])
    with pytest.raises(InputError, match="cut from other pictures"):
        network_of_bundle(bundle, open_run(run))
