"""Prototypes in the code space of an autoencoder: their nearest pictures, and their assignment to leaves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import NetworkDescription, build_autoencoder

# Number of pictures to encode or decode at once.
PIECE = 1000


def pieces(pictures: Tensor) -> Iterator[Tensor]:
    """Consecutive pieces of pictures [images, …]."""
    for start in range(0, len(pictures), PIECE):
        yield pictures[start : start + PIECE]


@torch.inference_mode()
def codes_of(network: PrototypeAutoencoder, pictures: Tensor) -> Tensor:
    """The codes [images, D] of pictures uint8 [images, H, W, 3]."""
    return torch.cat([network.latent(network.features(piece)).flatten(1) for piece in pieces(pictures)])


def nearest_pictures(network: PrototypeAutoencoder, codes: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each prototype, the index int64 [P] of the nearest of `codes` [images, D], and its squared distance float64
    [P]. Computes differences in double precision."""
    difference = codes.double()[:, None] - network.head.prototypes.detach().double()
    nearest = (difference * difference).sum(2).min(dim=0)
    return nearest.indices.cpu().numpy(), nearest.values.cpu().numpy()


@torch.no_grad()
def assigned_to_leaves(
    description: NetworkDescription, network: PrototypeAutoencoder, codes: Tensor
) -> tuple[NetworkDescription, PrototypeAutoencoder]:
    """An equivalent network that can be explained, and its description.

    Each prototype is assigned to the leaf for which it has the largest weight, prototypes are ordered by leaf, and
    similarities are relative to the mean over `codes` [images, D]. All probabilities stay the same (see
    `PrototypeHead.recentre_distances`).
    """
    head = network.head
    head.recentre_distances(_mean_distance(codes, head.prototypes))
    member = head.effective_weight()[0].argmax(0)
    child = head.grouping.member_node[0][member].cpu().numpy()
    order = np.argsort(child, kind="stable")
    ordered = description.model_copy(update={"prototype_child": [int(node) for node in child[order]]})
    state = network.state_dict()
    index = torch.from_numpy(order).to(head.weight.device)
    for name, dimension in (("prototypes", 0), ("reference", 0), ("weight", 2)):
        state[f"head.{name}"] = state[f"head.{name}"].index_select(dimension, index)
    result = build_autoencoder(ordered)
    result.load_state_dict(state)
    return ordered, result.to(head.weight.device).eval()


def _mean_distance(codes: Tensor, prototypes: Tensor) -> Tensor:
    """[P]: the mean squared distance of all codes to each prototype, ‖mean − p‖² plus the variance of the codes."""
    exact = codes.double()
    mean = exact.mean(0)
    variance = (exact - mean).square().sum(1).mean()
    return (mean - prototypes.detach().double()).square().sum(1) + variance
