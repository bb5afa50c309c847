"""The gate accepts near-ties and refuses every other difference."""

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.network_answers import NetworkAnswers
from export.parity import Runtime, check
from protoserve.errors import ParityError
from protoserve.graph_signature import named_arrays
from protoserve.networks.network import PrototypeNetwork
from protoserve.networks.routed_head import RoutedHead
from protoserve.taxonomy import Taxonomy
from tests.bundles import LEAVES

Outputs: TypeAlias = dict[str, NDArray[Any]]
Change: TypeAlias = Callable[[Outputs], None]
TOP_K = 4


@pytest.fixture(scope="module")
def pictures(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return samples[:9]


def unchanged(outputs: Outputs) -> None:
    pass


def honest(network: PrototypeNetwork, change: Change = unchanged) -> Runtime:
    def run(pictures: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            explained = network.explain(torch.from_numpy(pictures), TOP_K)
        outputs = {name: array.numpy().copy() for name, array in named_arrays(explained).items()}
        change(outputs)
        return outputs

    return run


def test_the_network_agrees_with_itself(network: PrototypeNetwork, pictures: NDArray[np.uint8]) -> None:
    report = check(NetworkAnswers(network, TOP_K), honest(network), pictures)
    assert list(report.batches) == [1, 3, 8]
    for batch in report.batches.values():
        assert set(batch.agreement.values()) == {1.0}
        assert set(batch.near_ties.values()) == {0}


def nudge(name: str, amount: float) -> Change:
    def change(outputs: Outputs) -> None:
        outputs[name].flat[0] += amount

    return change


def set_first(name: str, value: float) -> Change:
    def change(outputs: Outputs) -> None:
        outputs[name].flat[0] = value

    return change


def another_cell(outputs: Outputs) -> None:
    outputs["cell"][0, 0] = (outputs["cell"][0, 0] + 1) % 96


def another_leaf(outputs: Outputs) -> None:
    taxonomy = Taxonomy.from_paths(LEAVES)
    leaves = list(taxonomy.leaves)
    least_probable = leaves[outputs["log_probability"][0, leaves].argmin()]
    outputs["path"][0] = taxonomy.path_at_level[least_probable]


def swapped_evidence(outputs: Outputs) -> None:
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
def test_a_wrong_answer_fails_the_parity_check_and_is_named(
    network: PrototypeNetwork, pictures: NDArray[np.uint8], change: Change, named: str
) -> None:
    with pytest.raises(ParityError, match=named):
        check(NetworkAnswers(network, TOP_K), honest(network, change), pictures)


def test_equal_cells_are_a_near_tie_and_counted(network: PrototypeNetwork, pictures: NDArray[np.uint8]) -> None:
    blind = copy.deepcopy(network)
    with torch.no_grad():
        # All cells are now equal, so any of them is right.
        next(blind.add_on[1].parameters()).zero_()

    def change(outputs: Outputs) -> None:
        outputs["cell"][0, 0] = 50
        outputs["evidence_cell"][0][outputs["evidence_prototype"][0] == 0] = 50

    report = check(NetworkAnswers(blind, TOP_K), honest(blind, change), pictures[:1])
    assert report.batches[1].near_ties["cell"] == 1
    assert report.batches[1].agreement["cell"] < 1.0


def routed(network: PrototypeNetwork, change: Change = unchanged, certain: bool = True) -> Runtime:
    head = RoutedHead(network.head, TOP_K, 1, trunk=0)

    def run(pictures: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            found = head(network.latent(network.features(torch.from_numpy(pictures))))
        outputs = {name: array.numpy().copy() for name, array in named_arrays(found).items()}
        outputs["certain"] &= certain
        change(outputs)
        return outputs

    return run


def test_a_routed_graph_is_compared_on_certain_pictures_alone(
    network: PrototypeNetwork, pictures: NDArray[np.uint8]
) -> None:
    report = check(NetworkAnswers(network, TOP_K), routed(network), pictures, routed=True)
    certain = report.batches[3].certain
    assert certain is not None and 0.0 < certain <= 1.0
    for change in (nudge("path_log_probability", 0.01), nudge("evidence_map", 0.01), nudge("path_logit", 0.01)):
        with pytest.raises(ParityError):
            check(NetworkAnswers(network, TOP_K), routed(network, change), pictures, routed=True)
        # Where it is not certain, the full graph answers.
        doubtful = check(NetworkAnswers(network, TOP_K), routed(network, change, certain=False), pictures, routed=True)
        assert doubtful.batches[1].certain == 0.0


def test_a_routed_graph_that_shows_another_cell_is_refused(
    network: PrototypeNetwork, pictures: NDArray[np.uint8]
) -> None:
    def elsewhere(outputs: Outputs) -> None:
        outputs["evidence_cell"] = np.where(outputs["evidence_cell"] < 0, -1, (outputs["evidence_cell"] + 5) % 96)

    with pytest.raises(ParityError, match="cell differs"):
        check(NetworkAnswers(network, TOP_K), routed(network, elsewhere), pictures, routed=True)
