"""How well the novelty scores separate images of unknown classes from known ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from protoserve.data.dataset import Dataset
from protoserve.data.novel import NovelImages
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import Network
from protoserve.novelty import NoveltyTable, Thresholds, parent_names, threshold
from protoserve.schema import NoveltyRecord
from protoserve.taxonomy import ROOT, Kind, Taxonomy
from training.loop.answers import Answers, answer_pictures, images_below, novelty_table


def evaluate_novelty(
    network: Network,
    known: Answers,
    dataset: Dataset,
    images: NovelImages,
    thresholds: NoveltyRecord | None,
    rule: InputRule,
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """How well a network tells `images` of unknown classes from the known ones of `dataset`, whose answers are `known`.

    See `novelty_report` for what comes back.
    """
    novel = answer_pictures(
        network,
        lambda number: fit(images.picture(number), rule).array,
        len(images),
        device,
        console,
        "scoring novel images",
    )
    table, taxonomy = novelty_table(network), dataset.taxonomy
    report = novelty_report(known, dataset.leaves, novel, images.ancestor, table, taxonomy, thresholds)
    return {**report, "passed_over": images.passed_over}


def novelty_report(
    known: Answers,
    leaves: NDArray[np.int64],
    novel: Answers,
    ancestor: NDArray[np.int64],
    table: NoveltyTable,
    taxonomy: Taxonomy,
    thresholds: NoveltyRecord | None,
) -> dict[str, Any]:
    """Scores of novelty, JSON-ready.

    `leaves` [known images] are places in `taxonomy.leaves`, `ancestor` [novel images] the deepest known node of each or
    `ROOT`. Under `parents`, for every group with novel images: how many of them have its parent as their deepest known
    ancestor and how many known images lie below it, and per score `auroc`, the chance that a known image scores above a
    novel one, and `fpr95`, the share of novel images that reach the threshold that 95 % of these known images reach
    (null without known images). `undecided` counts the novel images below a parent without a group: an only child.
    `right_level_1`, also per parent, is the share of novel images, of those known at level 1, that are put under the
    right node there.

    With `thresholds`, per parent `rejected`, the share of the novel images below its threshold, and
    `falsely_rejected`, that of the known ones; and over all novel images `detected`, the share of those that are known
    no deeper than their ancestor, and over the known ones `known_throughout`, those that are known down to the leaf.
    """
    from sklearn.metrics import roc_auc_score

    below = images_below(table, leaves, taxonomy)
    names = parent_names(table.groups, taxonomy)
    # Where all leaves compete at once there is one question, whatever the deepest known ancestor.
    one = len(table.groups) == 1 and table.groups[0].children == taxonomy.leaves
    predicted = predicted_path(novel, taxonomy)
    top = np.where(ancestor == ROOT, ROOT, taxonomy.path_at_level[ancestor, 0])
    placed = top != ROOT
    parents: dict[str, Any] = {}
    for group, parent in enumerate(names):
        own = np.full(len(ancestor), True) if one else ancestor == table.groups[group].parent
        if not own.any():
            continue
        inside = below[:, group]
        entry: dict[str, Any] = {"novel_images": int(own.sum()), "known_images": int(inside.sum()), "scores": {}}
        for score in table.available:
            familiar, strange = known.novelty[score][inside, group], novel.novelty[score][own, group]
            auroc = fpr = None
            if len(familiar):
                truth = np.repeat([1, 0], [len(familiar), len(strange)])
                auroc = float(roc_auc_score(truth, np.concatenate([familiar, strange])))
                fpr = float((strange >= threshold(familiar, 0.95)).mean())
            entry["scores"][score] = {"auroc": auroc, "fpr95": fpr}
        if thresholds is not None and parent in thresholds.thresholds:
            least = np.float32(thresholds.thresholds[parent])
            entry["rejected"] = float((novel.novelty[thresholds.score][own, group] < least).mean())
            familiar = known.novelty[thresholds.score][inside, group]
            entry["falsely_rejected"] = float((familiar < least).mean()) if len(familiar) else None
        entry["right_level_1"] = _mean((predicted[:, 0] == top)[own & placed])
        parents[parent] = entry
    report: dict[str, Any] = {
        "images": len(ancestor),
        "undecided": len(ancestor) - sum(entry["novel_images"] for entry in parents.values()),
        "right_level_1": _mean((predicted[:, 0] == top)[placed]),
        "parents": parents,
    }
    if thresholds is not None:
        depth = np.array([*(len(node) for node in taxonomy.nodes), 0])  # the last one's is the root's
        through = known_levels(novel, table, taxonomy, thresholds).sum(axis=1)
        report["detected"] = float((through <= depth[ancestor]).mean())
        levels = known_levels(known, table, taxonomy, thresholds)
        report["known_throughout"] = known_throughout(levels, known, taxonomy)
    return report


def _mean(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if len(right) else None


def known_shares(answers: Answers, dataset: Dataset, table: NoveltyTable, record: NoveltyRecord) -> dict[str, float]:
    """Of a split's known images: `known_at_parents`, the share that reach the threshold, over all parents that each
    lies below, and `known_throughout`, the share known at every level of the predicted path."""
    least = np.array([record.thresholds.get(name, -np.inf) for name in parent_names(table.groups, dataset.taxonomy)])
    below = images_below(table, dataset.leaves, dataset.taxonomy)
    reached = answers.novelty[record.score] >= least.astype(np.float32)
    levels = known_levels(answers, table, dataset.taxonomy, record)
    return {
        "known_at_parents": float(reached[below].mean()),
        "known_throughout": known_throughout(levels, answers, dataset.taxonomy),
    }


def known_levels(answers: Answers, table: NoveltyTable, taxonomy: Taxonomy, record: NoveltyRecord) -> NDArray[np.bool_]:
    """[images, levels] as `protoserve.novelty.Thresholds.known`, for the predicted paths."""
    kind: Kind = "hierarchical" if table.groups == taxonomy.groups else "flat"
    thresholds = Thresholds.of(taxonomy, kind, table.prototype_child.tolist(), record.score, record.thresholds)
    return thresholds.known(predicted_path(answers, taxonomy), answers.novelty[record.score])


def predicted_path(answers: Answers, taxonomy: Taxonomy) -> NDArray[np.int64]:
    """int64 [images, levels] the path to the most probable leaf, −1 below it."""
    leaves = list(taxonomy.leaves)
    return np.asarray(taxonomy.path_at_level[leaves][answers.log_probability[:, leaves].argmax(axis=1)])


def known_throughout(levels: NDArray[np.bool_], answers: Answers, taxonomy: Taxonomy) -> float:
    """The share of images that are known at every level of their predicted path."""
    return float((levels == (predicted_path(answers, taxonomy) >= 0)).all(axis=1).mean())
