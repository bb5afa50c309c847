"""The terms of the loss, computed for all parents at once.

The published terms follow Hase et al. 2019, eq. 1, and Chen et al. 2019, eq. 2-3: the loss of one parent is
`CE + λ1·Clust + λ2·Sep + Reg` over the images below it. A batch mixes images of all classes, and no term loops over
parents: it masks the images that do not lie below each parent.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoserve.networks.grouping import gather_columns
from protoserve.networks.head import HeadOutput, PrototypeHead
from training.sections.data import LossConfig


class LossTables(NamedTuple):
    """How the G groups of competing nodes relate to each label: to each leaf and, for pictures that are labelled only
    down to an inner node, to each inner node (see `Taxonomy.label_nodes`).

    `own` bool [labels, G, Q]: whether a group's prototype belongs to a node on the label's path. `other` bool
    [labels, G, Q]: whether it belongs to a sibling of such a node. `passes` bool [labels, G]: whether the label lies
    below the group's parent. `target` int64 [labels, G]: the member of the group that is on the label's path.
    `outside` bool [labels, G]: whether the group's parent lies in another branch; below an inner label, nobody knows.
    `leaves` bool [labels, leaves]: the leaves that a picture of the label may have; None where all labels are leaves.
    """

    own: Tensor
    other: Tensor
    passes: Tensor
    target: Tensor
    outside: Tensor
    leaves: Tensor | None = None


def loss_tables(head: PrototypeHead, *, inner: bool = False) -> LossTables:
    """The tables of a head, with those of inner nodes if there are pictures of such labels (`inner`). They depend on
    its taxonomy and prototypes only, so compute them once."""
    taxonomy, device = head.taxonomy, head.weight.device
    none = len(taxonomy.nodes)
    below = taxonomy.labels_below if inner else taxonomy.leaves_below
    on_path = torch.from_numpy(below.T).to(device)  # [labels, nodes]
    on_path = torch.nn.functional.pad(on_path, (0, 1))
    members = on_path[:, head.grouping.member_node]  # [labels, G, M]
    passes = members.any(dim=2)
    child_or_none = torch.nn.functional.pad(head.grouping.prototype_child, (0, 1), value=none)
    slot_child = child_or_none[head.grouping.slot_prototype]
    own = on_path[:, slot_child]
    present = (slot_child < none)[None]
    other, target = passes[:, :, None] & present & ~own, members.int().argmax(dim=2)
    if not inner:
        return LossTables(own, other, passes, target, ~passes)
    # Below an inner label, no member is known to be on the picture's path or off it.
    first = head.grouping.member_node[:, 0].cpu().numpy()
    nodes = taxonomy.label_nodes[len(taxonomy.leaves) :, None]
    levels = [len(taxonomy.nodes[node]) - 1 for node in nodes[:, 0]]
    undecided = np.zeros(tuple(passes.shape), dtype=np.bool_)
    undecided[len(taxonomy.leaves) :] = (nodes == taxonomy.path_at_level[first][:, levels].T) & (first != nodes)
    outside = ~passes & ~torch.from_numpy(undecided).to(device)
    return LossTables(own, other, passes, target, outside, torch.from_numpy(taxonomy.leaves_of_label).to(device))


@dataclass(frozen=True)
class Answered:
    """What the terms of the loss read of a batch.

    `output` is the head's output for images whose true labels are `leaves`, int64 [batch], rows of the `tables`. These
    are indices into `taxonomy.leaves` or, for images that are labelled only down to an inner node, into
    `taxonomy.label_nodes`. `teacher_logits` [batch, leaves] come from the plain classifier that distillation learns
    from, or are None without one. `noise` is the head's output for pictures of noise, or None without any.
    """

    head: PrototypeHead
    output: HeadOutput
    leaves: Tensor
    tables: LossTables
    config: LossConfig
    teacher_logits: Tensor | None = None
    noise: HeadOutput | None = None

    @cached_property
    def passes(self) -> Tensor:
        """bool [batch, G]: whether each image lies below the parent of each group."""
        return self.tables.passes[self.leaves]

    @cached_property
    def weight(self) -> Tensor:
        """[batch, G]: the weight of each image in the loss of each parent."""
        return _weights(self.passes, self.config.average)

    @cached_property
    def slot_distance(self) -> Tensor:
        """[batch, G, Q]: the squared distances to the prototypes of each group."""
        slots = self.head.grouping.slot_prototype.clamp_max(self.output.distance.shape[1] - 1)
        return self.output.distance.index_select(1, slots.reshape(-1)).reshape(-1, *slots.shape)


def objective(answered: Answered, config: LossConfig, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The weighted sum of the terms as `total`, followed by the terms, all scalars.

    The configuration holds the weight of each term under the term's name in `TERMS`. Published terms are always
    computed, so that the curves of runs compare. Other terms are computed if their weight is above 0 and the batch has
    what they need. `names` restricts the terms.
    """
    terms: dict[str, Tensor] = {}
    for name, term in TERMS.items():
        if (names is None or name in names) and (name in PUBLISHED or getattr(config, name) > 0):
            value = term(answered)
            if value is not None:
                terms[name] = value
    return {"total": weighted_sum(terms, {name: getattr(config, name) for name in terms}), **terms}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the terms, each multiplied by its weight, added in order."""
    first, *others = (weights[name] * term for name, term in terms.items())
    return reduce(operator.add, others, first)


def cross_entropy_loss(answered: Answered) -> Tensor:
    """The cross-entropy of the true child at every parent on an image's path.

    With `average: parent`, as published, each parent's loss is the mean over the images below it, and the parents in
    the batch are summed. With `average: image`, every image counts once per level, so that its cross-entropies add up
    to −log P(leaf).
    """
    target = answered.tables.target[answered.leaves]
    chosen = answered.output.group_logits.log_softmax(2).gather(2, target[:, :, None])[:, :, 0]
    return -(answered.weight * torch.where(answered.passes, chosen, 0.0)).sum()


def cluster_loss(answered: Answered) -> Tensor:
    """Clust: the mean over images of the smallest squared distance to a prototype of their own child."""
    return (answered.weight * _smallest(answered.slot_distance, answered.tables.own[answered.leaves])).sum()


def separation_loss(answered: Answered) -> Tensor:
    """Sep: minus the mean over images of the smallest squared distance to a prototype of a sibling."""
    return -(answered.weight * _smallest(answered.slot_distance, answered.tables.other[answered.leaves])).sum()


def l1_loss(answered: Answered) -> Tensor:
    """The L1 norm of the weights between a child and other children's prototypes."""
    head = answered.head
    return torch.where(head.own_mask, 0.0, head.effective_weight()).abs().sum()


def l2_loss(answered: Answered) -> Tensor:
    """The squared L2 norm of the weights between a child and its own prototypes."""
    own = torch.where(answered.head.own_mask, answered.head.effective_weight(), 0.0)
    return (own * own).sum()


def outside_loss(answered: Answered) -> Tensor:
    """How far conditionals are from uniform at parents that an image does not lie below (see `divergence`).

    The mean over these parents, then over images; 0 with a single parent. Not in the papers: the published terms do not
    train a parent on images of other branches, whose arbitrary conditionals there then affect which leaf is the most
    probable.
    """
    elsewhere = answered.tables.outside[answered.leaves]
    outside = torch.where(elsewhere, divergence(answered.head, answered.output), 0.0)
    return (outside.sum(1) / elsewhere.sum(1).clamp_min(1)).mean()


def leaf_loss(answered: Answered) -> Tensor:
    """The cross-entropy over all leaves, with a leaf's logit the sum of the logits along its path.

    Not in the papers. It makes leaves of different branches compete, too.
    """
    return _leaf(answered.head, answered.output, answered.leaves, answered.tables.leaves)


def distillation_loss(answered: Answered) -> Tensor | None:
    """`distillation` from the teacher, or None without one."""
    if answered.teacher_logits is None:
        return None
    temperature = answered.config.distillation_temperature
    return distillation(
        answered.head, answered.output, answered.leaves, answered.tables, answered.teacher_logits, temperature
    )


def uniform_noise_loss(answered: Answered) -> Tensor | None:
    """`noise_loss` of the pictures of noise, or None without any."""
    return None if answered.noise is None else noise_loss(answered.head, answered.noise, answered.config)


def noise_loss(head: PrototypeHead, output: HeadOutput, config: LossConfig) -> Tensor:
    """KL(uniform ‖ conditional) at every parent for pictures of noise, a scalar ≥ 0.

    Hase et al. 2019 use the cross-entropy against the uniform distribution. This subtracts its minimum, the constant
    log(children), so that parents with different numbers of children compare and 0 means uniform conditionals. Averages
    over pictures, then sums over parents with `average: parent`, as the other terms do, or else averages over them.
    """
    per_parent = divergence(head, output).mean(0)
    return per_parent.sum() if config.average == "parent" else per_parent.mean()


def divergence(head: PrototypeHead, output: HeadOutput) -> Tensor:
    """[batch, G]: KL(uniform ‖ conditional) ≥ 0 of every parent's conditionals."""
    present = head.grouping.member_node < len(head.taxonomy.nodes)
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
    """The cross-entropy of the head's conditionals under the teacher's, both softened by a temperature T.

    Applies Hinton et al. 2015 to every parent on an image's path: T times the cross-entropy between the teacher's
    conditional and softmax(logits/T), summed over these parents and averaged over images. The teacher's conditional
    probability of a child is the sum of softmax(teacher_logits/T) over the leaves below the child, divided by the sum
    over the leaves below its parent. `teacher_logits` [batch, leaves].
    """
    leaf = torch.softmax(teacher_logits / temperature, dim=1)
    node = torch.nn.functional.pad(torch.matmul(leaf, head.leaves_below.t()), (0, 1))
    member = node[:, head.grouping.member_node]
    target = member / member.sum(2, keepdim=True).clamp_min(1e-12)
    # A group's missing members have a logit of −1e30 and a target of 0; without the clamp, their product could be NaN.
    log_conditional = (output.group_logits / temperature).log_softmax(2).clamp_min(-1e4)
    passes = tables.passes[leaves]
    terms = torch.where(passes, (target * log_conditional).sum(2), 0.0)
    return -temperature * terms.sum() / len(leaves)


def _leaf(head: PrototypeHead, output: HeadOutput, leaves: Tensor, possible: Tensor | None) -> Tensor:
    """The cross-entropy over all leaves, with a leaf's logit the sum of the logits along its path."""
    grouping = head.grouping
    rows = grouping.concatenate_members(grouping.logits_of_groups(output.group_logits))
    path = grouping.path_row[grouping.leaf_node]
    sums = gather_columns(rows, path.reshape(-1)).reshape(-1, *path.shape).sum(2)
    return leaf_cross_entropy(sums, leaves, possible)


def leaf_cross_entropy(logits: Tensor, labels: Tensor, possible: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy over all leaves, `logits` [batch, leaves], with label smoothing; the mean over images.

    `possible` bool [labels, leaves] are the leaves that a picture of each label may have: of a picture that is labelled
    only down to an inner node, −log of the sum of their probabilities counts. None where all labels are leaves.
    """
    if possible is None:
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    log_probability = logits.log_softmax(1)
    chosen = log_probability.masked_fill(~possible[labels], -torch.inf).logsumexp(1)
    return -((1.0 - smoothing) * chosen + smoothing * log_probability.mean(1)).mean()


def _weights(passes: Tensor, average: str) -> Tensor:
    """[batch, G]: the weight of each image in the loss of each parent."""
    below = passes.to(torch.get_default_dtype())
    if average == "image":
        return below / passes.shape[0]
    return below / below.sum(0, keepdim=True).clamp_min(1.0)


def _smallest(distance: Tensor, mask: Tensor) -> Tensor:
    """[batch, G]: the smallest distance where the mask is true, or 0 where it is true nowhere."""
    smallest = distance.masked_fill(~mask, torch.inf).min(dim=2).values
    return torch.where(mask.any(dim=2), smallest, 0.0)


# In the order in which they are summed. To add a term, write a function here and a weight of its name in `LossConfig`.
TERMS: dict[str, Callable[[Answered], Tensor | None]] = {
    "cross_entropy": cross_entropy_loss,
    "cluster": cluster_loss,
    "separation": separation_loss,
    "l1": l1_loss,
    "l2": l2_loss,
    "outside": outside_loss,
    "leaf": leaf_loss,
    "distillation": distillation_loss,
    "noise": uniform_noise_loss,
}
PUBLISHED = ("cross_entropy", "cluster", "separation", "l1", "l2")
