"""A network's outputs for plain pictures: log-probabilities and novelty scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import Network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import NoveltyTable
from protoserve.run.records import CalibrationChange
from protoserve.scores import calibration_scores
from protoserve.taxonomy import Taxonomy
from training.data.pictures import batches, fitted
from training.features.frozen import PictureFeatures, frozen_forward
from training.progress import tracked


class Answers(NamedTuple):
    """A network's outputs for N pictures; V nodes, G groups of competing nodes.

    `log_probability` float32 [N, V], at the network's temperatures; `uncalibrated` float32 [N, V], at temperature 1;
    `novelty`: the scores of `protoserve.novelty` by name, each float32 [N, G].
    """

    log_probability: NDArray[np.float32]
    uncalibrated: NDArray[np.float32]
    novelty: dict[str, NDArray[np.float32]]


def novelty_table(network: Network) -> NoveltyTable:
    """The groups and prototypes of a network, for the novelty scores."""
    if isinstance(network, LinearNetwork):
        return NoveltyTable.of(network.taxonomy, "linear", prototype_child=())
    head = network.head
    return NoveltyTable.of(head.taxonomy, head.kind, head.grouping.prototype_child.tolist())


@torch.inference_mode()
def logits_and_similarities(network: Network, features: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of the groups [N, G, M], not divided by temperatures, and the similarities [N, P].

    `features` are a batch of `network.features`. The network must be in evaluation mode.
    """
    if isinstance(network, LinearNetwork):
        return network.leaf_logits(features)[:, None], features.new_zeros(len(features), 0)
    output = network.head(network.latent(features))
    return output.group_logits, output.similarity


@torch.inference_mode()
def answer_features(network: Network, features: Tensor, table: NoveltyTable) -> Answers:
    """The answers for a batch of `network.features`."""
    group_logits, similarity = logits_and_similarities(network, features)
    logit = np.zeros((len(features), table.nodes), dtype=np.float32)
    group = np.repeat(np.arange(len(table.groups)), table.sizes)
    member = np.arange(len(group)) - np.repeat(table.offsets, table.sizes)
    logit[:, table.members] = group_logits.cpu().numpy()[:, group, member]
    log_probability = node_log_probability(network, group_logits).cpu().numpy()
    outputs = log_probability, logit, similarity.cpu().numpy()
    return Answers(
        log_probability,
        node_log_probability(network, group_logits * temperature(network)[:, None]).cpu().numpy(),
        {score: table.scores(score, *outputs) for score in table.available},
    )


def temperature(network: Network) -> Tensor:
    """[G]: the temperature of each group, which divides its logits."""
    return network.temperature if isinstance(network, LinearNetwork) else network.head.temperature


def node_log_probability(network: Network, group_logits: Tensor) -> Tensor:
    """[N, V]: log-probabilities of all nodes from the logits of the groups [N, G, M], at the network's temperatures."""
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
    """The answers for pictures 0 to `images` − 1; `load` returns one at model size, uint8 [H, W, 3]."""
    table = novelty_table(network)
    parts = []
    features_of: Callable[[Tensor], Tensor] = network.features
    if not isinstance(network, PrototypeAutoencoder):
        features_of = frozen_forward(PictureFeatures(network), images, "auto", device, console)
    with tracked(console, label, images) as advance:
        for numbers, pictures in batches(load, range(images), batch):
            with torch.inference_mode():
                features = features_of(pictures.to(device))
            parts.append(answer_features(network, features, table))
            advance(len(numbers))
    return joined(parts)


def joined(parts: list[Answers]) -> Answers:
    """Concatenate the answers of several batches."""
    return Answers(
        np.concatenate([part.log_probability for part in parts]),
        np.concatenate([part.uncalibrated for part in parts]),
        {score: np.concatenate([part.novelty[score] for part in parts]) for score in parts[0].novelty},
    )


def rows_of(answers: Answers, rows: NDArray[np.int64]) -> Answers:
    """The answers for some of the pictures."""
    novelty = {score: values[rows] for score, values in answers.novelty.items()}
    return Answers(answers.log_probability[rows], answers.uncalibrated[rows], novelty)


def answer_dataset(
    network: Network, dataset: Dataset, rule: InputRule, device: torch.device, console: Console
) -> Answers:
    """The answers for all pictures of a split, in order."""
    return answer_pictures(
        network,
        lambda number: fitted(dataset, number, rule).array,
        len(dataset),
        device,
        console,
        f"scoring {dataset.split}",
    )


def compare_calibration(answers: Answers, dataset: Dataset) -> CalibrationChange:
    """The calibration scores of a split without temperatures (`before`) and with them (`after`)."""
    before, after = answers.uncalibrated, answers.log_probability
    return CalibrationChange(
        before=calibration_scores(before, dataset.leaves, dataset.taxonomy),
        after=calibration_scores(after, dataset.leaves, dataset.taxonomy),
    )


def images_below(table: NoveltyTable, leaves: NDArray[np.int64], taxonomy: Taxonomy) -> NDArray[np.bool_]:
    """bool [images, groups]: whether an image's true leaf lies below the group's parent; `leaves` int64 [images]."""
    passes = [taxonomy.leaves_below[list(group.children)].any(axis=0) for group in table.groups]
    return np.stack(passes, axis=1)[leaves]
