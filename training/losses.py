"""The published losses, per parent, over class-mixed batches.

Hase et al. 2019, eq. 1 and Chen et al. 2019, eq. 2-3. For one parent the loss runs over the images below it:
`CE + λ1·Clust + λ2·Sep + Reg`. Nothing here loops over parents: every term is masked and summed at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
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


def loss_tables(head: PrototypeHead) -> LossTables:
    """The tables of a head; computed once per run."""
    taxonomy = head.taxonomy
    none = len(taxonomy.nodes)
    on_path = torch.from_numpy(taxonomy.leaves_below.T).to(head.weight.device)  # [leaves, nodes]
    on_path = torch.nn.functional.pad(on_path, (0, 1))
    members = on_path[:, head.grouping.member_node]  # [leaves, G, M]
    passes = members.any(dim=2)
    child_or_none = torch.nn.functional.pad(head.grouping.prototype_child, (0, 1), value=none)
    slot_child = child_or_none[head.grouping.slot_prototype]
    own = on_path[:, slot_child]
    present = (slot_child < none)[None]
    return LossTables(own, passes[:, :, None] & present & ~own, passes, members.int().argmax(dim=2))


@dataclass(frozen=True)
class Answered:
    """A batch as the terms of the loss see it: the head's `output` for images whose true leaves are `leaves` int64
    [batch], places in `taxonomy.leaves`.

    `teacher_logits` [batch, leaves] are those of the plain classifier that distillation learns from, and `noise` the
    head's output for pictures of noise; None where there are none.
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
        """bool [batch, G] whether each image lies below the parent of each group."""
        return self.tables.passes[self.leaves]

    @cached_property
    def weight(self) -> Tensor:
        """[batch, G] what each image counts for each parent."""
        return _weights(self.passes, self.config.average)

    @cached_property
    def slot_distance(self) -> Tensor:
        """[batch, G, Q] the squared distances to the prototypes of each group."""
        slots = self.head.grouping.slot_prototype.clamp_max(self.output.distance.shape[1] - 1)
        return self.output.distance.index_select(1, slots.reshape(-1)).reshape(-1, *slots.shape)


def objective(answered: Answered, config: LossConfig, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """`total`, the weighted sum of the terms, and after it the terms, all scalars.

    A term's name in `TERMS` is that of its weight in the configuration. The published terms are always computed, so
    that their curves can be compared; the others where they have a weight and the batch has what they need. `names`
    picks some of them.
    """
    terms: dict[str, Tensor] = {}
    for name, term in TERMS.items():
        if (names is None or name in names) and (name in PUBLISHED or getattr(config, name) > 0):
            value = term(answered)
            if value is not None:
                terms[name] = value
    return {"total": weighted_sum(terms, {name: getattr(config, name) for name in terms}), **terms}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the terms, each times its weight, added in their order."""
    first, *others = (weights[name] * term for name, term in terms.items())
    return reduce(operator.add, others, first)


def cross_entropy_loss(answered: Answered) -> Tensor:
    """The cross-entropy of the true child at every parent on an image's path.

    With `average: parent` each parent's terms are means over the images below it, summed over the parents in the batch
    (as published); with `image` every image counts once per level, so that the cross-entropies add up to
    −log P(leaf).
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
    """The mean over images of the mean `divergence` from uniform conditionals at the parents that they do not lie
    below; 0 with one parent.

    Not in the papers. The published terms leave open what a parent says of other branches' images, and the most
    probable leaf is then found among guesses.
    """
    found = torch.where(answered.passes, 0.0, divergence(answered.head, answered.output))
    return (found.sum(1) / (~answered.passes).sum(1).clamp_min(1)).mean()


def leaf_loss(answered: Answered) -> Tensor:
    """The cross-entropy over all leaves on the sums of the logits along their paths, so that leaves of different
    branches compete, too. Not in the papers."""
    return _leaf(answered.head, answered.output, answered.leaves)


def distillation_loss(answered: Answered) -> Tensor | None:
    """`distillation` from the teacher, where there is one."""
    if answered.teacher_logits is None:
        return None
    temperature = answered.config.distillation_temperature
    return distillation(
        answered.head, answered.output, answered.leaves, answered.tables, answered.teacher_logits, temperature
    )


def uniform_noise_loss(answered: Answered) -> Tensor | None:
    """`noise_loss` of the pictures of noise, where there are some."""
    return None if answered.noise is None else noise_loss(answered.head, answered.noise, answered.config)


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
    """How far the head's conditionals are from a plain classifier's, both softened: for every parent on an image's path
    the cross-entropy of the head's conditional softmax(logits/T) under the teacher's, times T, summed over the parents
    and averaged over the images (Hinton et al. 2015, per parent).

    `teacher_logits` [batch, leaves]; the teacher's conditional of a child is the share that the leaves below it have of
    those below its parent, of softmax(teacher_logits/T).
    """
    leaf = torch.softmax(teacher_logits / temperature, dim=1)
    node = torch.nn.functional.pad(torch.matmul(leaf, head.leaves_below.t()), (0, 1))
    member = node[:, head.grouping.member_node]
    wanted = member / member.sum(2, keepdim=True).clamp_min(1e-12)
    # A group's missing members have a logit of −1e30 and are wanted with 0.
    found = (output.group_logits / temperature).log_softmax(2).clamp_min(-1e4)
    passes = tables.passes[leaves]
    terms = torch.where(passes, (wanted * found).sum(2), 0.0)
    return -temperature * terms.sum() / len(leaves)


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


# In the order in which they are added up. A new term is a function here and a weight of its name in `LossConfig`.
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
