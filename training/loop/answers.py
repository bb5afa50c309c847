"""A network's answers to plain pictures, and its scores from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import Network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import NoveltyTable
from protoserve.scores import calibration_scores
from protoserve.taxonomy import Taxonomy
from training.data.pictures import batches, fitted
from training.progress import tracked


class Answers(NamedTuple):
    """What a network says about N pictures; V nodes, G groups of competing nodes.

    `log_probability` and `uncalibrated` (at temperature 1) float32 [N, V]; `novelty` the scores of
    `protoserve.novelty`, each float32 [N, G].
    """

    log_probability: NDArray[np.float32]
    uncalibrated: NDArray[np.float32]
    novelty: dict[str, NDArray[np.float32]]


def novelty_table(network: Network) -> NoveltyTable:
    """The groups and prototypes of a network."""
    if isinstance(network, LinearNetwork):
        return NoveltyTable.of(network.taxonomy, "linear", prototype_child=())
    head = network.head
    return NoveltyTable.of(head.taxonomy, head.kind, head.grouping.prototype_child.tolist())


@torch.inference_mode()
def logits_and_similarities(network: Network, features: Tensor) -> tuple[Tensor, Tensor]:
    """[N, G, M] the groups' logits, before their temperatures, and [N, P] the similarities, for a batch of what
    `network.features` gives; the network must be in evaluation mode."""
    if isinstance(network, LinearNetwork):
        return network.leaf_logits(features)[:, None], features.new_zeros(len(features), 0)
    output = network.head(network.latent(features))
    return output.group_logits, output.similarity


@torch.inference_mode()
def answer_features(network: Network, features: Tensor, table: NoveltyTable) -> Answers:
    """The answers for a batch of what `network.features` gives."""
    group_logits, similarity = logits_and_similarities(network, features)
    logit = np.zeros((len(features), table.nodes), dtype=np.float32)
    of_group = np.repeat(np.arange(len(table.groups)), table.sizes)
    place = np.arange(len(of_group)) - np.repeat(table.offsets, table.sizes)
    logit[:, table.members] = group_logits.cpu().numpy()[:, of_group, place]
    log_probability = node_log_probability(network, group_logits).cpu().numpy()
    found = log_probability, logit, similarity.cpu().numpy()
    return Answers(
        log_probability,
        node_log_probability(network, group_logits * temperature(network)[:, None]).cpu().numpy(),
        {score: table.scores(score, *found) for score in table.available},
    )


def temperature(network: Network) -> Tensor:
    """[G] what each group's logits are divided by."""
    return network.temperature if isinstance(network, LinearNetwork) else network.head.temperature


def node_log_probability(network: Network, group_logits: Tensor) -> Tensor:
    """[N, V] log-probabilities of all nodes from the groups' logits [N, G, M], at the network's temperatures."""
    if isinstance(network, LinearNetwork):
        return network.node_log_probability(group_logits[:, 0])
    return network.head.node_log_probability(group_logits)[1]


def answer_pictures(
    network: Network,
    load: Callable[[int], NDArray[np.uint8]],
    images: int,
    device: torch.device,
    console: Console,
    label: str,
    *,
    batch: int = 32,
) -> Answers:
    """The answers for pictures 0 to `images` − 1, which `load` gives at model size, uint8 [H, W, 3]."""
    table = novelty_table(network)
    found = []
    with tracked(console, label, images) as advance:
        for numbers, pictures in batches(load, range(images), batch):
            with torch.inference_mode():
                features = network.features(pictures.to(device))
            found.append(answer_features(network, features, table))
            advance(len(numbers))
    return joined(found)


def joined(parts: list[Answers]) -> Answers:
    """The answers of several batches as one."""
    return Answers(
        np.concatenate([part.log_probability for part in parts]),
        np.concatenate([part.uncalibrated for part in parts]),
        {score: np.concatenate([part.novelty[score] for part in parts]) for score in parts[0].novelty},
    )


def answer_dataset(
    network: Network, dataset: Dataset, rule: InputRule, device: torch.device, console: Console
) -> Answers:
    """The answers for a split's pictures, in order."""
    return answer_pictures(
        network,
        lambda number: fitted(dataset, number, rule).array,
        len(dataset),
        device,
        console,
        f"scoring {dataset.split}",
    )


def compare_calibration(answers: Answers, dataset: Dataset) -> dict[str, Any]:
    """`before` and `after`: the calibration scores of a split's images without and with the temperatures."""
    before, after = answers.uncalibrated, answers.log_probability
    return {
        "before": calibration_scores(before, dataset.leaves, dataset.taxonomy),
        "after": calibration_scores(after, dataset.leaves, dataset.taxonomy),
    }


def images_below(table: NoveltyTable, leaves: NDArray[np.int64], taxonomy: Taxonomy) -> NDArray[np.bool_]:
    """[images, groups] whether an image's true leaf lies below the group's parent."""
    passes = [taxonomy.leaves_below[list(group.children)].any(axis=0) for group in table.groups]
    return np.stack(passes, axis=1)[leaves]
