"""The number of prototypes: start with many, remove them in rounds, and keep the fewest that classify as well.

The papers choose the number by hand. This search merges near-duplicates, applies the published purity rule, and then
removes the prototypes with the smallest contributions, round by round, down to one per child. Each round refits the
last layers. The distances to the projected prototypes are computed once, so a round takes a few epochs of the last
layers.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from training.stages.last_layers import fit_distances, last_layer_epoch, nearest_cells_of_all
from training.stages.pruning import replace_head

# Two prototypes of a child are duplicates within this fraction of the median distance between siblings' prototypes.
MERGE_WITHIN = 0.1


@dataclass(frozen=True)
class Round:
    """The result of a round: the `rule` that removed prototypes, those `kept` (int64, their numbers before the first
    round), the head that holds them, and its accuracies on the selection images."""

    rule: Rule
    kept: NDArray[np.int64]
    head: PrototypeHead
    selected: SelectionAccuracy


def count(trainer: Trainer) -> dict[str, float]:
    """Find the number of prototypes, and replace the run's head by the one of the round picked.

    Records all rounds as `counts`.
    """
    rounds, tolerance = thinning_rounds(trainer), trainer.config.prototypes.tolerance
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


def thinning_rounds(trainer: Trainer) -> list[Round]:
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
        """[kept]: the mean absolute contribution of each prototype to its child's logit."""
        return np.abs(own_weights(last.head).cpu().numpy() * mean[last.kept])

    everything = np.arange(len(head.grouping.prototype_child))
    rounds = [refitted("", everything, smaller_head(head, everything))]
    children = len(np.unique(head.grouping.prototype_child.cpu().numpy()))
    with tracked(trainer.console, "fewer prototypes", len(everything) - children) as advance:

        def remove(rule: Rule, replacement: NDArray[np.int64]) -> Round:
            """Add a round if its rule removes prototypes; `replacement` indexes the prototypes of the last round."""
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
    """The index of the round with the fewest prototypes whose accuracy is within `tolerance` of the best; the most
    accurate one if several have as few. `rounds` are (prototypes, accuracy).

    >>> pick([(100, 0.80), (50, 0.81), (20, 0.806), (10, 0.75)], tolerance=0.005)
    2
    """
    # The margin keeps an accuracy at exactly the tolerance despite rounding.
    least = max(accuracy for _, accuracy in rounds) - tolerance - 1e-9
    within = [number for number, (_, accuracy) in enumerate(rounds) if accuracy >= least]
    return min(within, key=lambda number: (rounds[number][0], -rounds[number][1]))


def _selection_distances(trainer: Trainer) -> Tensor:
    """[images, P]: the squared distances of the selection images to the prototypes."""
    network, images = trainer.prototype_network, len(trainer.splits.selection)
    own = np.arange(images)[trainer.processes.stripe(images)]
    features = trainer.feed.features("selection", slices(own, trainer.config.batch))
    distance, _ = nearest_cells_of_all(network.head, map(network.latent, features))
    return trainer.processes.joined(distance, images).clone()


def _refit(trainer: Trainer, head: PrototypeHead, fit: Tensor, selection: Tensor) -> SelectionAccuracy:
    """Train the last layers of `head` on distances `fit` [images, P], and return the accuracies of the best epoch on
    `selection` [images, P]. The head keeps that epoch's weights, or its initial ones if they are better."""
    config = trainer.config
    tables = trainer.tables_of(head)
    optimiser = adam([([head.weight], config.last_layers.learning_rate)])
    keep, best = KeepBest({}, "weights"), _accuracies(trainer, head, selection)
    keep.keep({"weight": head.weight})
    for number in range(config.prototypes.epochs):
        last_layer_epoch(trainer, head, fit, tables, optimiser, trainer.state.step + number)
        selected = _accuracies(trainer, head, selection)
        if keep.offer({"weight": head.weight}, selected, best):
            best = selected
    keep.restore(head)
    head.weight.requires_grad_(False)
    return best


@torch.inference_mode()
def _accuracies(trainer: Trainer, head: PrototypeHead, distance: Tensor) -> SelectionAccuracy:
    """The accuracies on the selection images. Computing all scores would take longer than an epoch."""
    taxonomy, leaves = head.taxonomy, trainer.splits.selection.leaves
    output = head.classify(distance, torch.zeros_like(distance, dtype=torch.int64))
    predicted = output.log_probability.index_select(1, head.grouping.leaf_node).argmax(1).cpu().numpy()
    top = taxonomy.level_of_leaf[:, 0]
    return SelectionAccuracy(
        selection_leaf=float((predicted == leaves).mean()),
        selection_level_1=float((top[predicted] == top[leaves]).mean()),
    )
