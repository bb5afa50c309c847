"""Which prototypes to remove, which one replaces each, and the smaller head that remains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead


@torch.inference_mode()
def mean_similarities(head: PrototypeHead, distance: Tensor, leaves: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [P] the mean similarity of each prototype to the images that its child's logit is asked for: those below
    the child's parent, all of them in a flat network.

    `distance` [images, P]; `leaves` int64 [images] are places in `taxonomy.leaves`.
    """
    below = torch.from_numpy(head.taxonomy.leaves_below.T[leaves]).to(distance.device)  # [images, nodes]
    # [images, groups]
    passes = torch.nn.functional.pad(below, (0, 1))[:, head.grouping.member_node].any(dim=2).double()
    sums = torch.matmul(passes.t(), head.similarity_of(distance).double())  # [groups, P]
    group = head.grouping.prototype_group
    mean = sums[group, torch.arange(len(group), device=group.device)] / passes.sum(0)[group]
    return mean.cpu().numpy()


def near_duplicates(
    head: PrototypeHead, source: NDArray[np.int64], strength: NDArray[np.float64], within: float
) -> NDArray[np.int64]:
    """int64 [P] the prototype that stands for each: itself, or a stronger one of the same child that it repeats.

    Two prototypes repeat each other when they were cut from the same cell (`source` [P, 2]: image, cell), or when their
    squared distance is at most `within` times the median one between prototypes of different children of the same
    parent. They are gone through by falling `strength`, so that the strongest of a cluster stays, and no chain
    of neighbours joins what lies apart.
    """
    child, replacement = head.grouping.prototype_child.cpu().numpy(), np.arange(len(head.grouping.prototype_child))
    for places, distance in _distances_within_groups(head):
        siblings = child[places][:, None] != child[places][None]
        limit = within * float(np.median(distance[siblings]))
        same_source = (source[places][:, None] == source[places][None]).all(axis=2)
        repeats = ~siblings & ((distance <= limit) | same_source)
        kept: list[int] = []
        for place in np.argsort(-strength[places], kind="stable").tolist():
            repeated = [other for other in kept if repeats[place, other]]
            if repeated:
                replacement[places[place]] = places[min(repeated, key=lambda other: distance[place, other])]
            else:
                kept.append(place)
    return replacement


def replacements(head: PrototypeHead, keep: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [P] the nearest prototype of the same child among those to `keep`; of these, each itself."""
    child, replacement = head.grouping.prototype_child.cpu().numpy(), np.arange(len(head.grouping.prototype_child))
    kept = np.isin(replacement, keep)
    for places, distance in _distances_within_groups(head):
        stays = kept[places]
        possible = stays[None] & (child[places][:, None] == child[places][None])
        nearest = np.where(possible, distance, np.inf).argmin(axis=1)
        replacement[places] = np.where(stays, places, places[nearest])
    return replacement


def _distances_within_groups(head: PrototypeHead) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each group of competing nodes its prototypes [Q] and their squared distances [Q, Q]."""
    vectors = head.vectors().detach().double().cpu()
    group = head.grouping.prototype_group.cpu().numpy()
    for number in np.unique(group):
        places = np.flatnonzero(group == number)
        # By differences: equal prototypes must come out at 0.
        root = torch.cdist(vectors[places], vectors[places], compute_mode="donot_use_mm_for_euclid_dist")
        yield places, root.square().numpy()


@torch.no_grad()
def with_reweighted_replacements(
    head: PrototypeHead, replacement: NDArray[np.int64], mean: NDArray[np.float64]
) -> PrototypeHead:
    """The same head, with every prototype's weights moved to its replacement (`replacement` [P], of the same child),
    times the ratio of their mean similarities `mean` [P].

    So the mean logits stay as they are: a child that loses prototypes does not fall behind its siblings. Where the
    similarities are equal, as those of duplicates, so are the logits.
    """
    result = smaller_head(head, np.arange(len(replacement)))
    weight = head.effective_weight()[head.grouping.prototype_group, :, head.grouping.prototype_slot]  # [P, M]
    # A mean cosine may be 0 or below, and then no ratio keeps it.
    known = (mean > 0) & (mean[replacement] > 0)
    ratio = np.where(known, mean / np.where(known, mean[replacement], 1.0), 1.0)
    moved = weight * torch.from_numpy(ratio).to(weight)[:, None]
    sums = torch.zeros_like(weight).index_add_(0, torch.from_numpy(replacement).to(weight.device), moved)
    result.weight[result.grouping.prototype_group, :, result.grouping.prototype_slot] = sums
    return result


def strongest(strength: NDArray[np.float64], child: NDArray[np.int64], target: int) -> NDArray[np.int64]:
    """The `target` strongest prototypes, ascending, but always the strongest one of every child; `strength`, `child`
    [P]."""
    by_strength = np.argsort(-strength, kind="stable")
    # np.unique returns where each child occurs first, that is, its strongest.
    _, first = np.unique(child[by_strength], return_index=True)
    safe = by_strength[first]
    others = by_strength[~np.isin(by_strength, safe)]
    return np.sort(np.concatenate([safe, others[: max(0, target - len(safe))]]))


def pure_prototypes(
    own: NDArray[np.int64], child: NDArray[np.int64], class_size: NDArray[np.int64], at_least: int
) -> NDArray[np.int64]:
    """The prototypes to keep, ascending: those with `at_least` nearest patches of their own class.

    `own` int [P] counts each prototype's nearest patches that are of its class, `child` [P] is the node it belongs to,
    `class_size` [P] the number of training images of its class; a class of fewer images than `at_least` need not
    have more patches than images. The purest prototype of every child stays, the first of equals, whatever its purity:
    a child without prototypes could only ever be predicted for want of evidence for its siblings, and there would
    be nothing to show for it.
    """
    keep = own >= np.minimum(at_least, class_size)
    for node in np.unique(child):
        places = np.flatnonzero(child == node)
        if not keep[places].any():
            keep[places[own[places].argmax()]] = True
    return np.flatnonzero(keep)


def class_sizes(head: PrototypeHead, leaves: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [P] the number of images below each prototype's child."""
    images = np.bincount(leaves, minlength=len(head.taxonomy.leaves))
    child = head.grouping.prototype_child.cpu().numpy()
    return np.asarray((head.taxonomy.leaves_below @ images)[child], dtype=np.int64)


@torch.no_grad()
def smaller_head(head: PrototypeHead, kept: NDArray[np.int64]) -> PrototypeHead:
    """A head with the `kept` prototypes (ascending int64 numbers) and the weights they have, in evaluation mode.

    Its logits are those of `head` with the weights of all other prototypes set to zero. Raises ValueError when a child
    would lose its last prototype.
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
