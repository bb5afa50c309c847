"""The published losses, per parent, over class-mixed batches.

Hase et al. 2019, eq. 1 and Chen et al. 2019, eq. 2-3. For one parent the loss runs over the images below it:
`CE + λ1·Clust + λ2·Sep + Reg`. Nothing here loops over parents: every term is masked and summed at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protoserve.networks.grouping import gather_columns
from protoserve.networks.head import HeadOutput, PrototypeHead
from training.sections.data import LossConfig


class LossTables(NamedTuple):
    """Which prototypes count for which leaf: own, other bool [leaves, G, Q] (the leaf's branch's, and its siblings');
    passes bool [leaves, G] whether the leaf lies below the group's parent; target int64 [leaves, G] the member on
    the leaf's path."""

    own: Tensor
    other: Tensor
    passes: Tensor
    target: Tensor


class Losses(NamedTuple):
    """Scalars; `total` is their weighted sum."""

    total: Tensor
    cross_entropy: Tensor
    cluster: Tensor
    separation: Tensor
    l1: Tensor
    l2: Tensor
    outside: Tensor
    leaf: Tensor

    def asked_for(self, config: LossConfig) -> dict[str, Tensor]:
        """All by name, without the two that are not in the papers where they have no weight."""
        return {
            name: term
            for name, term in self._asdict().items()
            if name not in ("outside", "leaf") or getattr(config, name) > 0
        }


def loss_tables(head: PrototypeHead) -> LossTables:
    """The tables of a head; computed once per run."""
    taxonomy = head.taxonomy
    none = len(taxonomy.nodes)
    on_path = torch.from_numpy(taxonomy.leaves_below.T).to(head.weight.device)  # [leaves, nodes]
    on_path = torch.nn.functional.pad(on_path, (0, 1))
    members = on_path[:, head.member_node]  # [leaves, G, M]
    passes = members.any(dim=2)
    slot_child = torch.nn.functional.pad(head.prototype_child, (0, 1), value=none)[head.slot_prototype]
    own = on_path[:, slot_child]
    present = (slot_child < none)[None]
    return LossTables(own, passes[:, :, None] & present & ~own, passes, members.int().argmax(dim=2))


def losses(head: PrototypeHead, output: HeadOutput, leaves: Tensor, tables: LossTables, config: LossConfig) -> Losses:
    """The losses of a batch whose true leaves are `leaves` int64 [batch], places in `taxonomy.leaves`.

    Clust is the mean over images of the smallest squared distance to a prototype of their own child, Sep minus the
    mean of the smallest one to a sibling's. With `average: parent` each parent's terms are means over the images
    below it, summed over the parents in the batch (as published); with `image` every image counts once per
    level, so that the cross-entropies add up to −log P(leaf).

    Two terms are not in the papers, and 0 where their weights are. Outside is the mean over images of the mean
    `divergence` from uniform conditionals at the parents that they do not lie below: the published terms leave open
    what a parent says of other branches' images, and the most probable leaf is then found among guesses. Leaf is the
    mean of −log of the softmax over all leaves of the sum of the logits along a leaf's path: leaves of different
    branches compete, too.
    """
    passes = tables.passes[leaves]
    weight = _weights(passes, config.average)
    chosen = output.group_logits.log_softmax(2).gather(2, tables.target[leaves][:, :, None])[:, :, 0]
    cross_entropy = -(weight * torch.where(passes, chosen, 0.0)).sum()

    slots = head.slot_prototype.clamp_max(output.distance.shape[1] - 1)
    distance = output.distance.index_select(1, slots.reshape(-1)).reshape(-1, *slots.shape)
    cluster = (weight * _smallest(distance, tables.own[leaves])).sum()
    separation = -(weight * _smallest(distance, tables.other[leaves])).sum()
    l1, l2 = regularisation(head)
    zero = cross_entropy.new_zeros(())
    outside = _outside(head, output, passes) if config.outside > 0 else zero
    leaf = _leaf(head, output, leaves) if config.leaf > 0 else zero
    total = (
        config.cross_entropy * cross_entropy
        + config.cluster * cluster
        + config.separation * separation
        + config.l1 * l1
        + config.l2 * l2
        + config.outside * outside
        + config.leaf * leaf
    )
    return Losses(total, cross_entropy, cluster, separation, l1, l2, outside, leaf)


def noise_loss(head: PrototypeHead, output: HeadOutput, config: LossConfig) -> Tensor:
    """How far pictures of noise are from uniform conditionals: KL(uniform ‖ conditional) at every parent, a scalar ≥ 0.

    Hase et al. 2019 ask for uniform conditionals by cross-entropy; less its least value, log(children), which has no
    gradient, parents of many and of few children compare, and 0 means unsure of everything. The mean over the
    pictures, summed over all parents with `average: parent` as the other terms are, else their mean.
    """
    found = divergence(head, output).mean(0)
    return found.sum() if config.average == "parent" else found.mean()


def divergence(head: PrototypeHead, output: HeadOutput) -> Tensor:
    """[batch, G] how far the conditionals of every parent are from uniform: KL(uniform ‖ conditional) ≥ 0."""
    present = head.member_node < len(head.taxonomy.nodes)
    members = present.sum(1)
    logarithms = torch.where(present, output.group_logits.log_softmax(2), 0.0)
    return -logarithms.sum(2) / members - members.log()


def distillation(
    head: PrototypeHead,
    output: HeadOutput,
    leaves: Tensor,
    tables: LossTables,
    teacher_logits: Tensor,
    temperature: float,
) -> Tensor:
    """How far the head's conditionals are from a plain classifier's, both softened: for every parent on an image's path
    the cross-entropy of the head's conditional softmax(logits/T) under the teacher's, times T, summed over the parents
    and averaged over the images (Hinton et al. 2015, per parent).

    `teacher_logits` [batch, leaves]; the teacher's conditional of a child is the share that the leaves below it have of
    those below its parent, of softmax(teacher_logits/T).
    """
    leaf = torch.softmax(teacher_logits / temperature, dim=1)
    node = torch.nn.functional.pad(torch.matmul(leaf, head.leaves_below.t()), (0, 1))
    member = node[:, head.member_node]
    wanted = member / member.sum(2, keepdim=True).clamp_min(1e-12)
    # A group's missing members have a logit of −1e30 and are wanted with 0.
    found = (output.group_logits / temperature).log_softmax(2).clamp_min(-1e4)
    passes = tables.passes[leaves]
    terms = torch.where(passes, (wanted * found).sum(2), 0.0)
    return -temperature * terms.sum() / len(leaves)


def regularisation(head: PrototypeHead) -> tuple[Tensor, Tensor]:
    """L1 norm of the weights between a child and other children's prototypes, squared L2 norm of its own."""
    weight = head.effective_weight()
    l1 = torch.where(head.own_mask, 0.0, weight).abs().sum()
    own = torch.where(head.own_mask, weight, 0.0)
    return l1, (own * own).sum()


def _outside(head: PrototypeHead, output: HeadOutput, passes: Tensor) -> Tensor:
    """The mean over images of the mean divergence at the parents that they do not pass; 0 with one parent."""
    found = torch.where(passes, 0.0, divergence(head, output))
    return (found.sum(1) / (~passes).sum(1).clamp_min(1)).mean()


def _leaf(head: PrototypeHead, output: HeadOutput, leaves: Tensor) -> Tensor:
    """The cross-entropy over all leaves on the sums of the logits along their paths."""
    grouping = head.grouping
    rows = grouping.concatenate_members(grouping.logits_of_groups(output.group_logits))
    path = grouping.path_row[grouping.leaf_node]
    sums = gather_columns(rows, path.reshape(-1)).reshape(-1, *path.shape).sum(2)
    return torch.nn.functional.cross_entropy(sums, leaves)


def _weights(passes: Tensor, average: str) -> Tensor:
    """[batch, G] what each image counts for each parent."""
    below = passes.to(torch.get_default_dtype())
    if average == "image":
        return below / passes.shape[0]
    return below / below.sum(0, keepdim=True).clamp_min(1.0)


def _smallest(distance: Tensor, mask: Tensor) -> Tensor:
    """[batch, G] the smallest distance where the mask holds; 0 where it holds nowhere."""
    smallest = distance.masked_fill(~mask, torch.inf).min(dim=2).values
    return torch.where(mask.any(dim=2), smallest, 0.0)
