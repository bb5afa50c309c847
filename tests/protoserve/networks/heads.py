"""Random heads over an uneven tree, and the outputs of any head by loops in double precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.networks.head import PUBLISHED, PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, to_unit_length
from protoserve.taxonomy import Kind, Taxonomy

# Leaves at depths 1 to 4, and an only child.
UNEVEN = ("A/B/C/x", "A/B/C/y", "A/B/z", "A/w", "Q", "R/S/only", "R/T/u", "R/T/v")

FloatArray = NDArray[np.float64]

# With a larger ε than published, similarities near a prototype stay comparable.
WIDE = Similarity(epsilon=1e-3)
SIMILARITIES = (
    WIDE,
    Similarity("log-ratio", 1e-3),
    Similarity("cosine"),
    Similarity("negative-distance"),
    Similarity("log1p", 1e-3, zero=0.5),
)


def random_head(
    kind: Kind = "hierarchical",
    similarity: Similarity = PUBLISHED,
    *,
    unit_length: bool = False,
    dimensions: int = 8,
) -> PrototypeHead:
    """A head with 3 prototypes per child, and random references where its similarity has them."""
    taxonomy = Taxonomy.from_paths(UNEVEN)
    torch.manual_seed(0)
    head = PrototypeHead(
        taxonomy,
        prototype_children(taxonomy, kind, 3),
        dimensions,
        kind=kind,
        similarity=similarity,
        unit_length=unit_length,
    )
    with torch.no_grad():
        head.weight.add_(0.2 * torch.randn_like(head.weight))
        head.usual.copy_(torch.rand_like(head.usual))
        if head.reference is not None:
            head.reference.copy_(torch.rand_like(head.reference))
    return head.eval()


def random_latent(head: PrototypeHead, pictures: int, rows: int, columns: int) -> torch.Tensor:
    """Latent maps [pictures, D, rows, columns], of unit length where the head needs it."""
    latent = torch.rand(pictures, head.prototypes.shape[1], rows, columns)
    return to_unit_length(latent - 0.5, 1) if head.unit_length else latent


def random_tree(generator: np.random.Generator) -> Taxonomy:
    """An uneven tree with only children and leaves at depths 1 to 4."""
    leaves: list[tuple[str, ...]] = []

    def grow(path: tuple[str, ...], depth: int) -> None:
        for child in range(int(generator.integers(1 if depth else 2, 5))):
            here = (*path, str(child))
            if depth < 3 and generator.random() < 0.7 - 0.1 * depth:
                grow(here, depth + 1)
            else:
                leaves.append(here)

    grow((), 0)
    return Taxonomy.from_paths(leaves)


def head_over_random_tree(
    seed: int, similarity: Similarity = WIDE, *, unit_length: bool = False, dimensions: int = 6
) -> PrototypeHead:
    """A hierarchical head over `random_tree` with random weights, temperatures, and up to 6 prototypes per child."""
    tree = random_tree(np.random.default_rng(seed))
    torch.manual_seed(seed)
    children = prototype_children(tree, "hierarchical", 2, inner_factor=3)
    head = PrototypeHead(tree, children, dimensions, similarity=similarity, unit_length=unit_length)
    with torch.no_grad():
        head.weight.copy_(torch.randn_like(head.weight))
        head.temperature.uniform_(0.5, 2.0)
        head.centre.fill_(0.3)
        head.usual.copy_(torch.rand_like(head.usual))
    return head.eval()


class Expected(NamedTuple):
    """By loops in float64: `distance`, `cell` and `similarity` [N, P]; centred `logit` and `log_probability` [N, V]."""

    distance: FloatArray
    cell: NDArray[np.int64]
    similarity: FloatArray
    logit: FloatArray
    log_probability: FloatArray


def published(similarity: Similarity, distance: FloatArray) -> FloatArray:
    """The formula of a similarity without its `zero`."""
    if similarity.form == "log1p":
        return np.log(1 + 1 / (distance + similarity.epsilon))
    if similarity.form == "log-ratio":
        return np.log((distance + 1) / (distance + similarity.epsilon))
    return 1 - distance / 2 if similarity.form == "cosine" else -distance


def similarity_at(similarity: Similarity, distance: FloatArray) -> FloatArray:
    """The similarity of squared distances, 0 at its `zero`."""
    shift = 0.0 if similarity.zero is None else published(similarity, np.array(similarity.zero))
    return published(similarity, distance) - shift


def expected(head: PrototypeHead, latent: torch.Tensor) -> Expected:
    """The outputs for `latent` [N, D, rows, columns]; lengths do not count where the head needs unit length."""
    taxonomy = head.taxonomy
    cells = latent.double().flatten(2).numpy()
    prototypes = head.prototypes.detach().double().numpy()
    if head.unit_length:
        cells = cells / np.linalg.norm(cells, axis=1, keepdims=True)
        prototypes = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    distances = ((cells[:, None] - prototypes[None, :, :, None]) ** 2).sum(2)
    distance, cell = distances.min(2), distances.argmin(2)
    similarity = similarity_at(head.similarity, distance)
    if head.reference is not None:
        similarity = similarity + head.reference.double().numpy()
    weight = head.effective_weight().detach().double().numpy()
    logit = np.zeros((len(cells), len(taxonomy.nodes)))
    groups = [group.children for group in taxonomy.groups] if head.kind == "hierarchical" else [taxonomy.leaves]
    for number, members in enumerate(groups):
        owners = [p for p, child in enumerate(head.grouping.prototype_child.tolist()) if child in members]
        for position, node in enumerate(members):
            own = weight[number, : len(members), : len(owners)]
            logit[:, node] = similarity[:, owners] @ (own[position] - own.mean(0))
    return Expected(distance, cell, similarity, logit, _log_probability(head, logit))


def _log_probability(head: PrototypeHead, logit: FloatArray) -> FloatArray:
    taxonomy = head.taxonomy
    if head.kind != "hierarchical":
        exponential = np.exp(logit[:, list(taxonomy.leaves)])
        leaves = exponential / exponential.sum(1, keepdims=True)
        return np.asarray(np.log(leaves @ taxonomy.leaves_below.T))
    result = np.zeros_like(logit)
    for node, path in enumerate(taxonomy.nodes):
        for depth in range(1, len(path) + 1):
            ancestor = taxonomy.index["/".join(path[:depth])]
            siblings = list(taxonomy.children_of(int(taxonomy.parent[ancestor])))
            # An only child is certain once its parent is.
            if len(siblings) > 1:
                result[:, node] += logit[:, ancestor] - np.log(np.exp(logit[:, siblings]).sum(1))
    return result
