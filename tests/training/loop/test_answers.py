"""A network's answers, against sums over its groups in double precision, picture by picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset, read_split
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import NetworkDescription, build
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from protoserve.novelty import SCORES, NoveltyTable
from protoserve.taxonomy import Taxonomy
from training.loop.answers import (
    Answers,
    answer_dataset,
    answer_features,
    answer_pictures,
    compare_calibration,
    images_below,
    joined,
    logits_and_similarities,
    node_log_probability,
    novelty_table,
    temperature,
)

# A(0) B(1) C(2) | A/x(3) A/y(4) C/only(5); leaves B, A/x, A/y, C/only.
TREE = Taxonomy.from_paths(["A/x", "A/y", "B", "C/only"])
LEAVES = [TREE.names[leaf] for leaf in TREE.leaves]
RULE = InputRule(height=32, width=32, resize="stretch")
CHILDREN = [0, 0, 1, 2, 2, 2, 3, 4, 4]
CPU, QUIET = torch.device("cpu"), Console(quiet=True)


@pytest.fixture(scope="module")
def network() -> PrototypeNetwork:
    """A random network on `TREE` whose two groups have the temperatures 2 and 0.5."""
    torch.manual_seed(0)
    description = NetworkDescription(
        kind="hierarchical",
        taxonomy=TREE.to_dict(),
        input=RULE,
        backbone="shufflenet_v2_x0_5",
        stride=8,
        reduced=8,
        dimensions=6,
        prototype_child=CHILDREN,
    )
    built = build(description).eval()
    assert isinstance(built, PrototypeNetwork)
    with torch.no_grad():
        built.head.weight.normal_()
        built.head.temperature.copy_(torch.tensor([2.0, 0.5]))
    return built


@pytest.fixture(scope="module")
def linear() -> LinearNetwork:
    """A random plain classifier on `TREE` at temperature 2."""
    torch.manual_seed(1)
    description = NetworkDescription(
        kind="linear", taxonomy=TREE.to_dict(), input=RULE, backbone="shufflenet_v2_x0_5", stride=8
    )
    built = build(description).eval()
    assert isinstance(built, LinearNetwork)
    built.temperature.fill_(2.0)
    return built


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


@torch.inference_mode()
def features_of(network: PrototypeNetwork | LinearNetwork, pictures: NDArray[np.uint8]) -> Tensor:
    return network.features(torch.from_numpy(pictures))


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def node_probabilities(root: list[float], below_a: list[float], temperatures: tuple[float, float]) -> list[float]:
    """The probabilities of `TREE`'s nodes from the logits of A, B, C and of A/x, A/y."""
    a, b, c = softmax(root, temperatures[0])
    x, y = softmax(below_a, temperatures[1])
    return [a, b, c, a * x, a * y, c]


def test_the_table_holds_the_groups_and_prototypes_of_a_network(
    network: PrototypeNetwork, linear: LinearNetwork
) -> None:
    table = novelty_table(network)
    assert [group.children for group in table.groups] == [(0, 1, 2), (3, 4)]
    assert table.prototype_child.tolist() == CHILDREN
    plain = novelty_table(linear)
    assert [group.children for group in plain.groups] == [TREE.leaves]
    assert plain.available == ("energy", "probability")


def test_probabilities_follow_the_tree_at_the_groups_temperatures(
    network: PrototypeNetwork, pictures: NDArray[np.uint8]
) -> None:
    features = features_of(network, pictures)
    logits, _ = logits_and_similarities(network, features)
    answers = answer_features(network, features, novelty_table(network))
    assert answers.log_probability.dtype == answers.uncalibrated.dtype == np.float32
    for row, (root, below_a) in enumerate(logits.tolist()):
        for found, temperatures in ((answers.log_probability, (2.0, 0.5)), (answers.uncalibrated, (1.0, 1.0))):
            expected = node_probabilities(root, below_a[:2], temperatures)
            np.testing.assert_allclose(np.exp(found[row].astype(np.float64)), expected, rtol=1e-5)


def test_novelty_scores_are_those_of_each_group_alone(network: PrototypeNetwork, pictures: NDArray[np.uint8]) -> None:
    features = features_of(network, pictures)
    logits, similarity = logits_and_similarities(network, features)
    answers = answer_features(network, features, novelty_table(network))
    assert set(answers.novelty) == set(SCORES)
    prototypes = {child: [place for place, own in enumerate(CHILDREN) if own == child] for child in range(5)}
    for row in range(len(pictures)):
        for group, (children, divisor) in enumerate((((0, 1, 2), 2.0), ((3, 4), 0.5))):
            logit = logits[row, group, : len(children)].tolist()
            similarities = {child: similarity[row, prototypes[child]].tolist() for child in children}
            best = children[max(range(len(children)), key=logit.__getitem__)]
            own = float(np.mean(similarities[best]))
            probability = max(softmax(logit, divisor))
            assert {score: float(answers.novelty[score][row, group]) for score in SCORES} == pytest.approx(
                {
                    "energy": math.log(sum(map(math.exp, logit))),
                    "similarity": max(max(values) for values in similarities.values()),
                    "own-similarity": own,
                    "probability": probability,
                    "support": own * probability,
                },
                rel=1e-4,
            )


def test_a_plain_classifier_sums_its_leaves(linear: LinearNetwork, pictures: NDArray[np.uint8]) -> None:
    features = features_of(linear, pictures)
    logits, similarity = logits_and_similarities(linear, features)
    expected = features.double() @ linear.linear.weight.double().t() + linear.linear.bias.double()
    torch.testing.assert_close(logits[:, 0].double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert similarity.shape == (len(pictures), 0)
    answers = answer_features(linear, features, novelty_table(linear))
    for row, logit in enumerate(expected.tolist()):
        for found, divisor in ((answers.log_probability, 2.0), (answers.uncalibrated, 1.0)):
            b, x, y, only = softmax(logit, divisor)
            np.testing.assert_allclose(np.exp(found[row]), [x + y, b, only, x, y, only], rtol=1e-4)
        assert float(answers.novelty["energy"][row, 0]) == pytest.approx(math.log(sum(map(math.exp, logit))), rel=1e-5)


def test_a_group_s_logits_are_divided_by_its_temperature(network: PrototypeNetwork, linear: LinearNetwork) -> None:
    assert temperature(network).tolist() == [2.0, 0.5]
    assert temperature(linear).tolist() == [2.0]
    found = node_log_probability(network, torch.tensor([[[2.0, 0.0, 4.0], [1.0, 0.5, -1e30]]]))
    expected = node_probabilities([2.0, 0.0, 4.0], [1.0, 0.5], (2.0, 0.5))
    np.testing.assert_allclose(found.detach().exp().numpy()[0], expected, rtol=1e-5)


def assert_same(found: Answers, expected: Answers) -> None:
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.uncalibrated, expected.uncalibrated, rtol=1e-4, atol=1e-5)
    assert set(found.novelty) == set(expected.novelty)
    for score, values in found.novelty.items():
        np.testing.assert_allclose(values, expected.novelty[score], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_batches_change_no_answer_and_no_order(
    network: PrototypeNetwork, pictures: NDArray[np.uint8], batch: int
) -> None:
    found = answer_pictures(network, lambda number: pictures[number], len(pictures), CPU, QUIET, "scoring", batch=batch)
    table = novelty_table(network)
    singly = [answer_features(network, features_of(network, picture[None]), table) for picture in pictures]
    assert found.log_probability.shape == (7, 6)
    # Two pictures have different answers, so the order shows.
    assert np.abs(found.log_probability[0] - found.log_probability[1]).max() > 1e-4
    assert_same(found, joined(singly))


def test_a_data_set_is_answered_at_model_size_in_its_order(network: PrototypeNetwork, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    for place, leaf in enumerate(LEAVES):
        (tmp_path / "test" / leaf).mkdir(parents=True)
        pixels = generator.integers(60 * place, 60 * place + 60, (20, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "test" / leaf / "0.png")
    dataset = read_split(tmp_path, "test", TREE)
    found = answer_dataset(network, dataset, RULE, CPU, QUIET)
    fitted = np.stack([fit(dataset.picture(number), RULE).array for number in range(len(dataset))])
    assert_same(found, answer_features(network, features_of(network, fitted), novelty_table(network)))


def test_calibration_is_compared_without_and_with_temperatures() -> None:
    dataset = Dataset(Path("data"), "test", TREE, ("test/0.png", "test/1.png"), np.array([LEAVES.index("A/y")] * 2))

    def log_probability(right: float) -> NDArray[np.float32]:
        """A/y with the probability `right`, A/x with the rest."""
        # Stands for the logarithm of 0.
        row = [0.0, -50.0, -50.0, math.log(1 - right), math.log(right), -50.0]
        return np.array([row, row], dtype=np.float32)

    found = compare_calibration(Answers(log_probability(0.9), log_probability(0.6), {}), dataset)
    for scores, right in ((found.before, 0.6), (found.after, 0.9)):
        assert scores.negative_log_likelihood["leaf"] == pytest.approx(-math.log(right), rel=1e-5)
        # Always right, with the confidence `right`.
        assert scores.expected_calibration_error["leaf"] == pytest.approx(1 - right, rel=1e-5)


def test_images_below_a_parent() -> None:
    table = NoveltyTable.of(TREE, "hierarchical", [0, 1, 2, 3, 4])
    leaves = np.array([LEAVES.index(name) for name in ("A/x", "A/y", "A/y", "B")])
    assert images_below(table, leaves, TREE).tolist() == [[True, True], [True, True], [True, True], [True, False]]
