"""How many prototypes: start with many, take away what is not needed, and keep the fewest that classify as well.

The papers fix the number by hand. Here near-duplicates are merged, the published purity rule is applied, and then
prototypes go by falling contribution, down to one per child; after each round the last layers are fitted again. All
rounds work on the distances of the projected prototypes, computed once, so a round costs a few epochs of the last
layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead
from protoserve.run.records import Counts, CountsRound, Rule, SelectionAccuracy
from training.data.batches import slices
from training.loop.epoch import KeepBest
from training.loop.optimising import adam
from training.loop.trainer import Trainer
from training.losses import loss_tables
from training.progress import tracked
from training.prototypes.nearest_patches import own_patches, own_weights
from training.prototypes.thinning import (
    class_sizes,
    mean_similarities,
    near_duplicates,
    pure_prototypes,
    replacements,
    smaller_head,
    strongest,
    with_reweighted_replacements,
)
from training.stages.analysis import fit_patches
from training.stages.last_layers import fit_distances, last_layer_epoch, similarities_of
from training.stages.pruning import replace_head

if TYPE_CHECKING:
    pass

# Duplicates lie within this share of the median distance between siblings' prototypes.
MERGE_WITHIN = 0.1


@dataclass(frozen=True)
class Round:
    """What is left after a round: the rule that took prototypes away, those `kept` (int64, their numbers before
    the first round), their head, and its accuracies on the selection images."""

    rule: Rule
    kept: NDArray[np.int64]
    head: PrototypeHead
    selected: SelectionAccuracy


def count(trainer: Trainer) -> dict[str, float]:
    """The stage: find the number of prototypes, and go on with the network that has it.

    All rounds are recorded as `counts`.
    """
    rounds, tolerance = thinned_out(trainer), trainer.config.prototypes.tolerance
    picked = pick([(len(done.kept), done.selected.selection_leaf) for done in rounds], tolerance)
    table = [
        CountsRound(round=number, rule=done.rule, prototypes=len(done.kept), **done.selected.model_dump())
        for number, done in enumerate(rounds)
    ]
    trainer.state.records.counts = Counts(rounds=table, picked=picked, tolerance=tolerance)
    replace_head(trainer, rounds[picked].head, rounds[picked].kept)
    best = max(done.selected.selection_leaf for done in rounds)
    return {
        "rounds": len(rounds),
        "prototypes": len(rounds[picked].kept),
        "best": best,
        **trainer.select_prototypes().model_dump(),
    }


def thinned_out(trainer: Trainer) -> list[Round]:
    """The rounds from all prototypes down to one per child."""
    setting, config, fit = trainer.config.prototypes, trainer.config, trainer.splits.fit
    head, projection = trainer.prototype_network.head, trainer.state.projection
    assert projection is not None  # the plan projects first
    fit_distance, selection_distance = fit_distances(trainer), _selection_distances(trainer)
    own = own_patches(head, fit_patches(trainer, config.prune.nearest), fit.leaves)
    mean = mean_similarities(head, fit_distance, fit.leaves)

    def refitted(rule: Rule, kept: NDArray[np.int64], smaller: PrototypeHead) -> Round:
        chosen = torch.from_numpy(kept).to(fit_distance.device)
        selected = _refit(trainer, smaller, fit_distance[:, chosen], selection_distance[:, chosen])
        return Round(rule, kept, smaller, selected)

    def strengths(last: Round) -> NDArray[np.float64]:
        """The mean size of each prototype's contribution to its child's logit."""
        return np.abs(own_weights(last.head).cpu().numpy() * mean[last.kept])

    everything = np.arange(len(head.grouping.prototype_child))
    rounds = [refitted("", everything, smaller_head(head, everything))]
    children = len(np.unique(head.grouping.prototype_child.cpu().numpy()))
    with tracked(trainer.console, "fewer prototypes", len(everything) - children) as advance:

        def remove(rule: Rule, replacement: NDArray[np.int64]) -> Round:
            """Add a round, unless its rule removes nothing; `replacement` indexes the prototypes of the last round."""
            last, left = rounds[-1], np.unique(replacement)
            if len(left) < len(last.kept):
                reweighted = with_reweighted_replacements(last.head, replacement, mean[last.kept])
                rounds.append(refitted(rule, last.kept[left], smaller_head(reweighted, left)))
                advance(len(last.kept) - len(left))
            return rounds[-1]

        source = torch.stack([projection.image, projection.cell], dim=1).numpy()
        last = remove("duplicates", near_duplicates(head, source, strengths(rounds[0]), MERGE_WITHIN))
        pure, sizes = own[last.kept].sum(axis=1), class_sizes(last.head, fit.leaves)
        keep = pure_prototypes(pure, last.head.grouping.prototype_child.cpu().numpy(), sizes, config.prune.at_least)
        last = remove("purity", replacements(last.head, keep))
        while len(last.kept) > children:
            target = int(setting.keep * len(last.kept))
            keep = strongest(strengths(last), last.head.grouping.prototype_child.cpu().numpy(), target)
            last = remove("contribution", replacements(last.head, keep))
    return rounds


def pick(rounds: list[tuple[int, float]], tolerance: float) -> int:
    """Which of (prototypes, accuracy) to take: the fewest prototypes whose accuracy is within `tolerance` of the best,
    of equally many the more accurate.

    >>> pick([(100, 0.80), (50, 0.81), (20, 0.806), (10, 0.75)], tolerance=0.005)
    2
    """
    # Accuracies are ratios of small numbers: one that is just within must not be lost to rounding.
    least = max(accuracy for _, accuracy in rounds) - tolerance - 1e-9
    within = [number for number, (_, accuracy) in enumerate(rounds) if accuracy >= least]
    return min(within, key=lambda number: (rounds[number][0], -rounds[number][1]))


def _selection_distances(trainer: Trainer) -> Tensor:
    """distance [images, P] of the selection images."""
    network, images = trainer.prototype_network, len(trainer.splits.selection)
    own = np.arange(images)[trainer.processes.stripe(images)]
    features = trainer.feed.features("selection", slices(own, trainer.config.batch))
    found, _ = similarities_of(network.head, map(network.latent, features))
    return trainer.processes.joined(found, images).clone()


def _refit(trainer: Trainer, head: PrototypeHead, fit: Tensor, selection: Tensor) -> SelectionAccuracy:
    """Fit the last layers of `head` on distances [images, P] and keep the weights, those at the start included, that
    classify the selection images best; returns their accuracies."""
    config = trainer.config
    tables = loss_tables(head)
    optimiser = adam([([head.weight], config.last_layers.learning_rate)])
    keep, best = KeepBest({}, "weights"), _accuracies(trainer, head, selection)
    keep.keep({"weight": head.weight})
    for number in range(config.prototypes.epochs):
        last_layer_epoch(trainer, head, fit, tables, optimiser, trainer.state.step + number)
        found = _accuracies(trainer, head, selection)
        if keep.offer({"weight": head.weight}, found, best):
            best = found
    keep.restore(head)
    head.weight.requires_grad_(False)
    return best


@torch.inference_mode()
def _accuracies(trainer: Trainer, head: PrototypeHead, distance: Tensor) -> SelectionAccuracy:
    """The accuracies on the selection images. The other scores would take longer than the epoch."""
    taxonomy, leaves = head.taxonomy, trainer.splits.selection.leaves
    output = head.classify(distance, torch.zeros_like(distance, dtype=torch.int64))
    predicted = output.log_probability.index_select(1, head.grouping.leaf_node).argmax(1).cpu().numpy()
    top = taxonomy.level_of_leaf[:, 0]
    return SelectionAccuracy(
        selection_leaf=float((predicted == leaves).mean()),
        selection_level_1=float((top[predicted] == top[leaves]).mean()),
    )


# ---- what is written down --------------------------------------------------------------------------------------------
