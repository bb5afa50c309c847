"""Calibration: fits the temperatures of `protoserve.temperatures` on the selection images."""

from __future__ import annotations

import numpy as np
import torch

from protoserve.novelty import parent_names
from protoserve.run.records import CalibrationChange, CalibrationRecord, CalibrationScores, SelectionAccuracy
from protoserve.scores import calibration_scores, scores
from protoserve.temperatures import fit_temperatures, shrinkage_path, tolerated
from training.loop.answers import logits_and_similarities, node_log_probability, novelty_table, temperature
from training.loop.trainer import Trainer, selection_accuracy


@torch.inference_mode()
def calibrate(trainer: Trainer) -> dict[str, float]:
    """Fit the temperatures on the selection images and set them in the network.

    Temperatures do not change the ranking of siblings, but may change which leaf is the most probable across branches.
    If that costs more accuracy on the selection images than `tolerated`, follow `shrinkage_path` until it does not.
    Stores the scores before and after calibration in the records; both are on the images used to fit.
    """
    network, selection = trainer.network, trainer.splits.selection
    taxonomy, groups = selection.taxonomy, novelty_table(network).groups
    logits = trainer.selection_rows(lambda features: logits_and_similarities(network, features)[0])
    below = taxonomy.leaves_below.T[selection.leaves]  # [images, nodes]
    group_logits, targets = [], []
    for number, group in enumerate(groups):
        member = below[:, list(group.children)]
        images = np.flatnonzero(member.any(axis=1))
        group_logits.append(logits[images, number, : len(group.children)].cpu().numpy())
        targets.append(member[images].argmax(axis=1))
    fitted = fit_temperatures(group_logits, targets)

    def selection_scores() -> CalibrationScores:
        log_probability = node_log_probability(network, logits).cpu().numpy()
        return calibration_scores(log_probability, selection.leaves, taxonomy)

    def selected() -> SelectionAccuracy:
        return selection_accuracy(
            scores(node_log_probability(network, logits).cpu().numpy(), selection.leaves, taxonomy)
        )

    before, accuracy = selection_scores(), selected().selection_leaf
    for temperatures in shrinkage_path(fitted):
        temperature(network).copy_(torch.from_numpy(temperatures))
        if selected().selection_leaf >= accuracy - tolerated(len(selection)):
            break
    after = selection_scores()
    names = parent_names(groups, taxonomy)
    trainer.state.records.calibration = CalibrationRecord(
        temperature=dict(zip(names, temperatures.tolist(), strict=True)),
        images={name: len(target) for name, target in zip(names, targets, strict=True)},
        common=fitted.common,
        spread=fitted.spread,
        selection=CalibrationChange(before=before, after=after),
    )
    return {
        "temperature": float(np.exp(np.log(temperatures).mean())),
        "calibration_error_before": before.expected_calibration_error["leaf"],
        "calibration_error": after.expected_calibration_error["leaf"],
        **selected().model_dump(),
    }
