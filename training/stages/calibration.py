"""Calibration: a temperature per parent, fitted on the selection images (Guo et al. 2017), and its picture.

A parent may have a handful of selection images, and its own best temperature is then noise (infinite certainty where
all are right). So the parents' log-temperatures are taken as draws from one normal distribution, whose mean and spread
are learned from all parents together, and each gets the mean of its posterior: many images speak for themselves, few
lean on the other parents. One parent alone gets its own maximum of likelihood, but for the weak prior of the mean. All
of it is sums over a grid, so there is nothing to converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.novelty import parent_names
from protoserve.run.records import CalibrationChange, CalibrationRecord, SelectionAccuracy
from protoserve.scores import calibration_scores, scores
from training.loop.answers import logits_and_similarities, node_log_probability, novelty_table, temperature
from training.loop.trainer import Trainer, selection_accuracy

# Log-temperatures looked at, from 1/20 to 20, and the spreads of the parents' around their mean.
GRID = np.linspace(-3.0, 3.0, 241)
SPREADS = np.array([0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8])
# Leaf accuracy on the selection images that temperatures may cost: sharper conditionals make the most probable path
# depend more on its first steps, and up to a point is the price of probabilities that mean what they say.
TOLERANCE = 0.01
# A priori the common temperature is within a factor e of 1 (one standard deviation): images that are all classified
# right, for example, say nothing against any certainty.
MEAN_SPREAD = 1.0


class Temperatures(NamedTuple):
    """`groups` float64 [groups] each group's temperature; the `common` one; `spread`, the standard deviation of the
    groups' log-temperatures around its logarithm (posterior means)."""

    groups: NDArray[np.float64]
    common: float
    spread: float


def fit_temperatures(logits: Sequence[NDArray[np.floating[Any]]], targets: Sequence[NDArray[np.int64]]) -> Temperatures:
    """The temperatures of groups of competing nodes.

    `logits[g]` [images, members] of the images below group g, which may be none; `targets[g]` int [images] the true
    members.
    """
    likelihood = np.stack([_log_likelihood(*pair) for pair in zip(logits, targets, strict=True)], axis=1)
    # Far from the best temperature exponentials would underflow to 0, which has no logarithm.
    likelihood = np.exp(np.maximum(likelihood - likelihood.max(axis=0), -600.0))
    # [spreads, means, grid] the density of a group's log-temperature, normalised over the grid.
    prior = -((GRID[None, None, :] - GRID[None, :, None]) ** 2) / (2 * SPREADS[:, None, None] ** 2)
    prior = np.exp(prior - prior.max(axis=2, keepdims=True))
    prior /= prior.sum(axis=2, keepdims=True)
    evidence = prior @ likelihood  # [spreads, means, groups]
    expected = prior @ (likelihood * GRID[:, None]) / evidence
    weight = np.log(evidence).sum(axis=2) - GRID**2 / (2 * MEAN_SPREAD**2)
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    return Temperatures(
        np.exp((weight[:, :, None] * expected).sum(axis=(0, 1))),
        float(np.exp((weight.sum(axis=0) * GRID).sum())),
        float((weight.sum(axis=1) * SPREADS).sum()),
    )


def shrinkage_path(found: Temperatures) -> list[NDArray[np.float64]]:
    """Temperatures of the groups to try one after the other: each group's own, halfway to the common one, the common
    one, halfway from that to 1, and 1."""
    own = np.log(found.groups)
    common = np.full_like(own, np.log(found.common))
    return [np.exp(logarithm) for logarithm in (own, (own + common) / 2, common, common / 2, 0 * common)]


def tolerated(images: int) -> float:
    """What calibration may cost of the accuracy on so many selection images: `TOLERANCE`, but always one image, which
    of a hundred or fewer says nothing; the least bit more covers the rounding of a difference of accuracies."""
    return max(TOLERANCE, 1.0 / images) + 1e-9


def _log_likelihood(logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """[grid] the log-likelihood of the true members at every log-temperature."""
    # Only differences count; the greatest at 0 keeps the exponentials finite.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    own = shifted[np.arange(len(targets)), targets]
    return np.array(
        [(own * inverse - np.log(np.exp(shifted * inverse).sum(axis=1))).sum() for inverse in np.exp(-GRID).tolist()]
    )


@torch.inference_mode()
def calibrate(trainer: Trainer) -> dict[str, float]:
    """The stage: fit the temperatures on the selection images and set them.

    They change no choice among siblings, but across branches the most probable leaf may become another one. Where that
    costs more than `tolerated` of the accuracy on the selection images, the parents are brought nearer to their common
    temperature, and that nearer to 1. The scores before and after are kept for the run's metrics; both are of the
    images that it was fitted on.
    """
    network, selection = trainer.network, trainer.splits.selection
    taxonomy, groups = selection.taxonomy, novelty_table(network).groups
    logits = trainer.selection_rows(lambda features: logits_and_similarities(network, features)[0])
    below = taxonomy.leaves_below.T[selection.leaves]  # [images, nodes]
    chosen, targets = [], []
    for number, group in enumerate(groups):
        member = below[:, list(group.children)]
        images = np.flatnonzero(member.any(axis=1))
        chosen.append(logits[images, number, : len(group.children)].cpu().numpy())
        targets.append(member[images].argmax(axis=1))
    found = fit_temperatures(chosen, targets)

    def selection_scores() -> dict[str, Any]:
        log_probability = node_log_probability(network, logits).cpu().numpy()
        return calibration_scores(log_probability, selection.leaves, taxonomy)

    def selected() -> SelectionAccuracy:
        return selection_accuracy(
            scores(node_log_probability(network, logits).cpu().numpy(), selection.leaves, taxonomy)
        )

    before, accuracy = selection_scores(), selected().selection_leaf
    for temperatures in shrinkage_path(found):
        temperature(network).copy_(torch.from_numpy(temperatures))
        if selected().selection_leaf >= accuracy - tolerated(len(selection)):
            break
    after = selection_scores()
    names = parent_names(groups, taxonomy)
    trainer.state.records.calibration = CalibrationRecord(
        temperature=dict(zip(names, temperatures.tolist(), strict=True)),
        images={name: len(target) for name, target in zip(names, targets, strict=True)},
        common=found.common,
        spread=found.spread,
        selection=CalibrationChange.model_validate({"before": before, "after": after}),
    )
    return {
        "temperature": float(np.exp(np.log(temperatures).mean())),
        "calibration_error_before": before["expected_calibration_error"]["leaf"],
        "calibration_error": after["expected_calibration_error"]["leaf"],
        **selected().model_dump(),
    }
