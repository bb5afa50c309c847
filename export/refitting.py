"""Refits the last layers of a network with prototypes switched off, on similarities alone.

Each group's layer is that of `protoserve.networks.refitting`, near the weights from before. Its penalty λ is chosen on
the selection images, by their negative log-likelihood along all paths.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from protoserve.networks.head import PrototypeHead
from protoserve.networks.refitting import refit_layer
from protoserve.novelty import NoveltyTable, Thresholds, fit_thresholds, parent_names, with_margin
from protoserve.promise.calibration import Calibration, kept_sample
from protoserve.promise.measuring import promise_metrics
from protoserve.restriction import unrestricted
from protoserve.run.similarities import KeptImages, KeptSimilarities
from protoserve.schema import NoveltyRecord, NoveltyScore, PromiseRecord
from protoserve.scores import scores
from protoserve.taxonomy import competing_groups
from protoserve.temperatures import fit_temperatures, shrinkage_path, tolerated

# From "fits the images" to "stays as it was", on a logarithmic grid.
PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Refit:
    """A refit's `penalty` λ, and the negative log-likelihood per selection image, in nats, before and after."""

    penalty: float
    before: float
    after: float


def refit(head: PrototypeHead, kept: KeptSimilarities, fixed: Collection[int]) -> Refit:
    """Refit the weights of `head` in place, without the prototypes that are off.

    Those get the weight 0, so their prior goes, too. The weights of the prototypes `fixed` stay as they are, and so do
    all of a group below which there are no images.
    """
    off = torch.zeros(len(head.prototypes), dtype=torch.bool) if head.off is None else head.off
    free = ~off
    free[list(fixed)] = False
    with torch.no_grad():
        head.weight.mul_(~functional.pad(off, (0, 1))[head.grouping.slot_prototype][:, None, :])
    start = head.weight.detach().clone()
    before = _loss(head, kept.selection)
    found: dict[float, tuple[float, Tensor]] = {}
    for penalty in PENALTIES:
        weight = _fitted(head, kept.fit, start, free, penalty)
        with torch.no_grad():
            head.weight.copy_(weight)
        found[penalty] = _loss(head, kept.selection), weight
    best = min(found, key=lambda penalty: found[penalty][0])
    with torch.no_grad():
        head.weight.copy_(found[best][1])
    return Refit(best, before, found[best][0])


def _fitted(head: PrototypeHead, images: KeptImages, start: Tensor, free: Tensor, penalty: float) -> Tensor:
    """Return the weights [G, M, Q] that minimise the objective near `start`; only prototypes in `free` bool [P]
    move."""
    weight = start.clone()
    member = _members(head, images.leaves)
    similarity = head.counted(torch.from_numpy(images.similarity))
    for group in range(len(weight)):
        own = torch.nonzero(head.grouping.prototype_group == group)[:, 0]
        rows = torch.nonzero(member[:, group] >= 0)[:, 0]
        moving = free[own]
        if not len(rows) or not moving.any():
            continue
        size = int((head.grouping.member_node[group] < len(head.taxonomy.nodes)).sum())
        weight[group, :size, : len(own)] = refit_layer(
            start[group, :size, : len(own)], similarity[rows][:, own], member[rows, group], penalty, free=moving
        )
    return weight


def _members(head: PrototypeHead, leaves: NDArray[np.int64]) -> Tensor:
    """Return the true member of each group, int64 [images, groups], −1 for a group that a leaf is not below."""
    below = head.taxonomy.leaves_below.T[leaves]  # [images, nodes]
    columns = []
    for nodes in head.grouping.member_node.tolist():
        own = below[:, [node for node in nodes if node < below.shape[1]]]
        columns.append(np.where(own.any(axis=1), own.argmax(axis=1), -1))
    return torch.from_numpy(np.stack(columns, axis=1))


@torch.inference_mode()
def _loss(head: PrototypeHead, images: KeptImages) -> float:
    """Return the mean negative log-likelihood of the images' leaves, in nats."""
    log_probability = log_probabilities(head, images)
    leaves = np.array(head.taxonomy.leaves)[images.leaves]
    return float(-log_probability[np.arange(len(leaves)), leaves].mean())


@torch.inference_mode()
def group_logits(head: PrototypeHead, images: KeptImages) -> Tensor:
    """Return the logits [images, G, M] of all groups, −1e30 in a group's padding."""
    grouping = head.grouping
    similarity = head.counted(torch.from_numpy(images.similarity))
    return grouping.group_logits(grouping.logits(similarity, grouping.weights(head.effective_weight())))


@torch.inference_mode()
def log_probabilities(head: PrototypeHead, images: KeptImages) -> NDArray[np.float32]:
    """Return the log-probabilities [images, V] of all nodes."""
    return np.asarray(head.node_log_probability(group_logits(head, images))[1].numpy())


@torch.no_grad()
def recalibrate(head: PrototypeHead, selection: KeptImages) -> None:
    """Fit the temperatures of `head` anew, in place, on the selection images (see `protoserve.temperatures`)."""
    logits, member = group_logits(head, selection).numpy(), _members(head, selection.leaves).numpy()
    sizes = (head.grouping.member_node < len(head.taxonomy.nodes)).sum(1).tolist()
    rows = [np.flatnonzero(member[:, group] >= 0) for group in range(len(sizes))]
    fitted = fit_temperatures(
        [logits[own, group, : sizes[group]] for group, own in enumerate(rows)],
        [member[own, group] for group, own in enumerate(rows)],
    )

    def leaf_accuracy() -> float:
        return scores(log_probabilities(head, selection), selection.leaves, head.taxonomy).accuracy["leaf"]

    before = leaf_accuracy()
    for temperatures in shrinkage_path(fitted):
        head.temperature.copy_(torch.from_numpy(temperatures))
        if leaf_accuracy() >= before - tolerated(len(selection.leaves)):
            break


@torch.inference_mode()
def novelty_scores(head: PrototypeHead, images: KeptImages, score: NoveltyScore) -> NDArray[np.float32]:
    """Return the novelty scores [images, groups] of logits as trained."""
    children = head.grouping.prototype_child.tolist()
    table = NoveltyTable.of(head.taxonomy, head.kind, children)
    logit = head.grouping.node_values(
        head.grouping.concatenate_members(head.grouping.logits_of_groups(group_logits(head, images)))
    )
    similarity = head.counted(torch.from_numpy(images.similarity)).numpy()
    return table.scores(score, log_probabilities(head, images), logit.numpy(), similarity)


def refitted_thresholds(head: PrototypeHead, selection: KeptImages, record: NoveltyRecord) -> NoveltyRecord:
    """Fit the novelty thresholds of `record` anew on the selection images (see `protoserve.novelty.fit_thresholds`)."""
    member = _members(head, selection.leaves).numpy()
    found = fit_thresholds(novelty_scores(head, selection, record.score), member >= 0, record.true_positive_rate)
    names = parent_names(competing_groups(head.taxonomy, head.kind), head.taxonomy)
    minimum = {
        name: with_margin(float(value)) for name, value in zip(names, found.minimum, strict=True) if value > -np.inf
    }
    return record.model_copy(update={"thresholds": minimum})


def promise_again(
    head: PrototypeHead, selection: KeptImages, novelty: NoveltyRecord | None, record: PromiseRecord
) -> tuple[Calibration, PromiseRecord]:
    """Make the promise `record` anew from the selection images; returns also their scores, which stand behind it."""
    taxonomy, kind = head.taxonomy, head.kind
    children = head.grouping.prototype_child.tolist()
    fits = np.ones((len(selection.leaves), len(competing_groups(taxonomy, kind))), dtype=np.bool_)
    if novelty is not None:
        thresholds = Thresholds.of(taxonomy, kind, children, novelty.score, novelty.thresholds)
        fits = thresholds.fits(novelty_scores(head, selection, novelty.score))
    probabilities = log_probabilities(head, selection)[:, list(taxonomy.leaves)]
    calibration = kept_sample(Calibration(selection.leaves.astype(np.int32), probabilities, fits))
    group_of = NoveltyTable.of(taxonomy, kind, children).group_of(kind)
    walks = calibration.walks(unrestricted(taxonomy), group_of)
    return calibration, promise_metrics(walks, record.precision, record.confidence).record(record.folder)
