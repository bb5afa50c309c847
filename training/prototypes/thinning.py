"""Remove prototypes: which to remove, which prototype replaces each, and the smaller head that remains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead


@torch.inference_mode()
def mean_similarities(head: PrototypeHead, distance: Tensor, leaves: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [P]: the mean similarity of each prototype over the images below its child's parent; over all images in a
    flat network.

    `distance` [images, P]; `leaves` int64 [images] are indices into `taxonomy.label_nodes`.
    """
    below = torch.from_numpy(head.taxonomy.labels_below.T[leaves]).to(distance.device)  # [images, nodes]
    # [images, groups]
    passes = torch.nn.functional.pad(below, (0, 1))[:, head.grouping.member_node].any(dim=2).double()
    sums = torch.matmul(passes.t(), head.similarity_of(distance).double())  # [groups, P]
    group = head.grouping.prototype_group
    mean = sums[group, torch.arange(len(group), device=group.device)] / passes.sum(0)[group]
    return mean.cpu().numpy()


def near_duplicates(
    head: PrototypeHead, source: NDArray[np.int64], strength: NDArray[np.float64], within: float
) -> NDArray[np.int64]:
    """int64 [P]: the prototype that replaces each: itself, or a stronger prototype of the same child that it
    duplicates.

    Two prototypes of a child are duplicates if they were cut from the same cell (`source` [P, 2]: image, cell), or if
    their squared distance is at most `within` times the median between prototypes of different children of the same
    parent. Prototypes are visited in order of falling `strength` [P] and compared only with those already kept. So the
    strongest of a cluster is kept, and a chain of neighbours does not merge distant prototypes.
    """
    child, replacement = head.grouping.prototype_child.cpu().numpy(), np.arange(len(head.grouping.prototype_child))
    for members, distance in _distances_within_groups(head):
        siblings = child[members][:, None] != child[members][None]
        limit = within * float(np.median(distance[siblings]))
        same_source = (source[members][:, None] == source[members][None]).all(axis=2)
        duplicates = ~siblings & ((distance <= limit) | same_source)
        kept: list[int] = []
        for index in np.argsort(-strength[members], kind="stable").tolist():
            originals = [other for other in kept if duplicates[index, other]]
            if originals:
                nearest = min(originals, key=lambda other: distance[index, other])
                replacement[members[index]] = members[nearest]
            else:
                kept.append(index)
    return replacement


def replacements(head: PrototypeHead, keep: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [P]: the prototype that replaces each: itself if it is in `keep`, else the nearest of its child in
    `keep`."""
    child, replacement = head.grouping.prototype_child.cpu().numpy(), np.arange(len(head.grouping.prototype_child))
    kept = np.isin(replacement, keep)
    for members, distance in _distances_within_groups(head):
        stays = kept[members]
        possible = stays[None] & (child[members][:, None] == child[members][None])
        nearest = np.where(possible, distance, np.inf).argmin(axis=1)
        replacement[members] = np.where(stays, members, members[nearest])
    return replacement


def _distances_within_groups(head: PrototypeHead) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each group of competing nodes, its prototypes int64 [Q] and their squared distances float64 [Q, Q]."""
    vectors = head.vectors().detach().double().cpu()
    group = head.grouping.prototype_group.cpu().numpy()
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        # A matrix product would not give equal prototypes a distance of exactly 0.
        root = torch.cdist(vectors[members], vectors[members], compute_mode="donot_use_mm_for_euclid_dist")
        yield members, root.square().numpy()


@torch.no_grad()
def with_reweighted_replacements(
    head: PrototypeHead, replacement: NDArray[np.int64], mean: NDArray[np.float64]
) -> PrototypeHead:
    """A copy of the head with every prototype's weights moved to its replacement.

    `replacement` int64 [P] is of the same child. The weights are multiplied by the ratio of the two mean similarities
    `mean` [P]. This keeps the mean logits, so that a child that loses prototypes is not at a disadvantage. If the
    similarities are equal, as those of duplicates are, it keeps the logits themselves.
    """
    result = smaller_head(head, np.arange(len(replacement)))
    weight = head.effective_weight()[head.grouping.prototype_group, :, head.grouping.prototype_slot]  # [P, M]
    # A mean cosine similarity may be 0 or negative; no ratio then keeps the mean logit.
    known = (mean > 0) & (mean[replacement] > 0)
    ratio = np.where(known, mean / np.where(known, mean[replacement], 1.0), 1.0)
    moved = weight * torch.from_numpy(ratio).to(weight)[:, None]
    sums = torch.zeros_like(weight).index_add_(0, torch.from_numpy(replacement).to(weight.device), moved)
    result.weight[result.grouping.prototype_group, :, result.grouping.prototype_slot] = sums
    return result


def strongest(strength: NDArray[np.float64], child: NDArray[np.int64], target: int) -> NDArray[np.int64]:
    """The numbers of the `target` strongest prototypes, ascending, but at least the strongest of every child;
    `strength` and `child` [P]."""
    by_strength = np.argsort(-strength, kind="stable")
    # np.unique returns the first occurrence of each child, which is its strongest prototype.
    _, first = np.unique(child[by_strength], return_index=True)
    required = by_strength[first]
    others = by_strength[~np.isin(by_strength, required)]
    return np.sort(np.concatenate([required, others[: max(0, target - len(required))]]))


def pure_prototypes(
    own: NDArray[np.int64], child: NDArray[np.int64], class_size: NDArray[np.int64], at_least: int
) -> NDArray[np.int64]:
    """The numbers of the prototypes to keep, ascending: those with `at_least` nearest patches of their own class.

    `own` int [P] counts each prototype's nearest patches of its own class, `child` [P] is its node, and `class_size`
    [P] the number of training images below that node. A class with fewer images than `at_least` needs one patch per
    image. If a child would lose all its prototypes, its purest one stays, the first if several are equal. Without
    prototypes, there would be no evidence for the child.
    """
    keep = own >= np.minimum(at_least, class_size)
    for node in np.unique(child):
        members = np.flatnonzero(child == node)
        if not keep[members].any():
            keep[members[own[members].argmax()]] = True
    return np.flatnonzero(keep)


def class_sizes(head: PrototypeHead, leaves: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [P]: the number of images below each prototype's child that are labelled down to a leaf; `leaves` int64
    [images]."""
    count = len(head.taxonomy.leaves)
    images = np.bincount(leaves[leaves < count], minlength=count)
    child = head.grouping.prototype_child.cpu().numpy()
    return np.asarray((head.taxonomy.leaves_below @ images)[child], dtype=np.int64)


@torch.no_grad()
def smaller_head(head: PrototypeHead, kept: NDArray[np.int64]) -> PrototypeHead:
    """A head with the `kept` prototypes (int64 numbers, ascending) and their weights, in evaluation mode.

    Its logits are those of `head` with the weights of all other prototypes set to 0. Raises ValueError if a child would
    lose its last prototype.
    """
    chosen = torch.from_numpy(kept).to(head.prototypes.device)
    children = head.grouping.prototype_child[chosen].tolist()
    if lost := set(head.grouping.prototype_child.tolist()) - set(children):
        raise ValueError(f"no prototype of {head.taxonomy.names[min(lost)]!r} is kept; keep one of each child")
    smaller = PrototypeHead(
        head.taxonomy,
        children,
        head.prototypes.shape[1],
        kind=head.kind,
        similarity=head.similarity,
        unit_length=head.unit_length,
    ).to(head.prototypes.device)
    smaller.prototypes.copy_(head.prototypes[chosen])
    smaller.centre.copy_(head.centre)
    smaller.temperature.copy_(head.temperature)
    weight = head.effective_weight()[head.grouping.prototype_group[chosen], :, head.grouping.prototype_slot[chosen]]
    smaller.weight.zero_()
    smaller.weight[smaller.grouping.prototype_group, :, smaller.grouping.prototype_slot] = weight
    return smaller.eval()
