"""The gate must open for near-ties and shut for everything else."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from export.parity import check
from protoserve.errors import ParityError
from protoserve.graph_signature import named_arrays
from protoserve.networks.model_file import load_network
from protoserve.networks.routed_head import RoutedHead
from protoserve.taxonomy import Taxonomy
from tests.bundles import LEAVES

TOP_K = 4


@pytest.fixture(scope="module")
def network(tiny_run: Path):
    return load_network(tiny_run / "model.pt")[0]


@pytest.fixture(scope="module")
def samples(tiny_run: Path):
    return np.load(tiny_run / "samples.npy")[:9]


def honest(network, change=lambda outputs: None):
    def run(pictures):
        with torch.inference_mode():
            explained = network.explain(torch.from_numpy(pictures), TOP_K)
        outputs = {name: array.numpy().copy() for name, array in named_arrays(explained).items()}
        change(outputs)
        return outputs

    return run


def test_the_network_agrees_with_itself(network, samples) -> None:
    report = check(network, TOP_K, honest(network), samples)
    for batch in ("batch_1", "batch_3", "batch_8"):
        assert set(report[batch]["agreement"].values()) == {1.0}
        assert set(report[batch]["near_ties"].values()) == {0}


def nudge(name, amount):
    def change(outputs) -> None:
        outputs[name].flat[0] += amount

    return change


def set_first(name, value):
    def change(outputs) -> None:
        outputs[name].flat[0] = value

    return change


def another_cell(outputs) -> None:
    outputs["cell"][0, 0] = (outputs["cell"][0, 0] + 1) % 96


def another_leaf(outputs) -> None:
    taxonomy = Taxonomy.from_paths(LEAVES)
    leaves = list(taxonomy.leaves)
    least_probable = leaves[outputs["log_probability"][0, leaves].argmin()]
    outputs["path"][0] = taxonomy.path_at_level[least_probable]


def swapped_evidence(outputs) -> None:
    outputs["evidence_prototype"][0, 0, :2] = outputs["evidence_prototype"][0, 0, 1::-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (nudge("log_probability", 0.01), "log_probability"),
        (nudge("logit", 0.01), "logit"),
        (nudge("similarity", 0.01), "similarity"),
        (nudge("evidence_contribution", 0.01), "evidence_contribution"),
        (nudge("evidence_map", 0.01), "evidence_map"),
        (nudge("evidence_cell", 1), "evidence_cell"),
        (set_first("log_probability", np.nan), "not finite"),
        (another_cell, "cell"),
        (another_leaf, "path"),
        (swapped_evidence, "evidence_prototype"),
    ],
)
def test_a_wrong_answer_shuts_the_gate_and_is_named(network, samples, change, named: str) -> None:
    with pytest.raises(ParityError, match=named):
        check(network, TOP_K, honest(network, change), samples)


def test_equal_cells_are_a_near_tie_and_counted(network, samples) -> None:
    blind = copy.deepcopy(network)
    with torch.no_grad():
        # Every cell looks the same now, so another one is as right as the first.
        blind.add_on[1].weight.zero_()

    def change(outputs) -> None:
        outputs["cell"][0, 0] = 50
        outputs["evidence_cell"][0][outputs["evidence_prototype"][0] == 0] = 50

    report = check(blind, TOP_K, honest(blind, change), samples[:1])
    assert report["batch_1"]["near_ties"]["cell"] == 1
    assert report["batch_1"]["agreement"]["cell"] < 1.0


def routed(network, change=lambda outputs: None, certain=True):
    head = RoutedHead(network.head, TOP_K, 1, trunk=0)

    def run(pictures):
        with torch.inference_mode():
            found = head(network.latent(network.features(torch.from_numpy(pictures))))
        outputs = {name: array.numpy().copy() for name, array in named_arrays(found).items()}
        outputs["certain"] &= certain
        change(outputs)
        return outputs

    return run


def test_a_routed_graph_is_held_to_what_it_is_certain_of(network, samples) -> None:
    report = check(network, TOP_K, routed(network), samples, routed=True)
    assert 0.0 < report["batch_3"]["certain"] <= 1.0
    for change in (nudge("path_log_probability", 0.01), nudge("evidence_map", 0.01), nudge("path_logit", 0.01)):
        with pytest.raises(ParityError):
            check(network, TOP_K, routed(network, change), samples, routed=True)
        # Of what it is not certain, the full graph answers.
        doubtful = check(network, TOP_K, routed(network, change, certain=False), samples, routed=True)
        assert doubtful["batch_1"]["certain"] == 0.0


def test_a_routed_graph_that_shows_another_cell_is_refused(network, samples) -> None:
    def elsewhere(outputs) -> None:
        outputs["evidence_cell"] = np.where(outputs["evidence_cell"] < 0, -1, (outputs["evidence_cell"] + 5) % 96)

    with pytest.raises(ParityError, match="cell differs"):
        check(network, TOP_K, routed(network, elsewhere), samples, routed=True)
