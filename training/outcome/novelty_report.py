"""Measure how well novelty scores separate images of unknown classes from those of known ones."""

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
    """Measure how well a network separates `images` of unknown classes from those of `dataset`, with answers `known`.

    Returns the document of `novelty_report` and `passed_over`, the number of images of known classes skipped.
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
    """Measures of novelty detection as a JSON document.

    `leaves` int64 [known images] are indices into `taxonomy.leaves`; `ancestor` int64 [novel images] is the deepest
    known node of each, or `ROOT`. The document holds, with null for a mean over nothing:

    - `images`: the number of novel images. `undecided`: those whose deepest known node has a single child, so that no
      group competes below it. `right_level_1`: the share with the correct prediction at level 1, over those whose
      ancestor is not the root.
    - `parents`, for the parent of every group with novel images: `novel_images`, the number whose deepest known node it
      is; `known_images`, the number below it; `right_level_1`; and `scores`. For every score, `auroc` is the
      probability that a known image scores above a novel one; `fpr95` is the share of novel images that reach the
      threshold which 95 % of the known images reach.
    - With `thresholds`, for each parent `rejected` and `falsely_rejected`, the shares of novel and of known images
      below its threshold; and over all parents `detected`, the share of novel images that are not accepted as known
      below their deepest known node, and `known_throughout`, the share of known images that are accepted down to the
      leaf.
    """
    from sklearn.metrics import roc_auc_score

    below = images_below(table, leaves, taxonomy)
    names = parent_names(table.groups, taxonomy)
    # If all leaves compete in one group, it decides for all novel images, whatever their deepest known node.
    flat = len(table.groups) == 1 and table.groups[0].children == taxonomy.leaves
    predicted = predicted_path(novel, taxonomy)
    top = np.where(ancestor == ROOT, ROOT, taxonomy.path_at_level[ancestor, 0])
    has_level_1 = top != ROOT
    parents: dict[str, Any] = {}
    for group, parent in enumerate(names):
        own = np.full(len(ancestor), True) if flat else ancestor == table.groups[group].parent
        if not own.any():
            continue
        inside = below[:, group]
        entry: dict[str, Any] = {"novel_images": int(own.sum()), "known_images": int(inside.sum()), "scores": {}}
        for score in table.available:
            known_scores, novel_scores = known.novelty[score][inside, group], novel.novelty[score][own, group]
            auroc = fpr = None
            if len(known_scores):
                truth = np.repeat([1, 0], [len(known_scores), len(novel_scores)])
                auroc = float(roc_auc_score(truth, np.concatenate([known_scores, novel_scores])))
                fpr = float((novel_scores >= threshold(known_scores, 0.95)).mean())
            entry["scores"][score] = {"auroc": auroc, "fpr95": fpr}
        if thresholds is not None and parent in thresholds.thresholds:
            limit = np.float32(thresholds.thresholds[parent])
            entry["rejected"] = float((novel.novelty[thresholds.score][own, group] < limit).mean())
            known_scores = known.novelty[thresholds.score][inside, group]
            entry["falsely_rejected"] = float((known_scores < limit).mean()) if len(known_scores) else None
        entry["right_level_1"] = _mean((predicted[:, 0] == top)[own & has_level_1])
        parents[parent] = entry
    report: dict[str, Any] = {
        "images": len(ancestor),
        "undecided": len(ancestor) - sum(entry["novel_images"] for entry in parents.values()),
        "right_level_1": _mean((predicted[:, 0] == top)[has_level_1]),
        "parents": parents,
    }
    if thresholds is not None:
        depth = np.array([*(len(node) for node in taxonomy.nodes), 0])  # index −1, `ROOT`, gives 0
        accepted_levels = known_levels(novel, table, taxonomy, thresholds).sum(axis=1)
        report["detected"] = float((accepted_levels <= depth[ancestor]).mean())
        levels = known_levels(known, table, taxonomy, thresholds)
        report["known_throughout"] = known_throughout(levels, known, taxonomy)
    return report


def _mean(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if len(right) else None


def known_shares(answers: Answers, dataset: Dataset, table: NoveltyTable, record: NoveltyRecord) -> dict[str, float]:
    """The shares of a split's images that the thresholds accept as known.

    `known_at_parents` is the share of pairs of an image and a parent above it in which the image reaches the threshold;
    `known_throughout` is the share of images that are known at every level of their predicted path.
    """
    limits = np.array([record.thresholds.get(name, -np.inf) for name in parent_names(table.groups, dataset.taxonomy)])
    below = images_below(table, dataset.leaves, dataset.taxonomy)
    reached = answers.novelty[record.score] >= limits.astype(np.float32)
    levels = known_levels(answers, table, dataset.taxonomy, record)
    return {
        "known_at_parents": float(reached[below].mean()),
        "known_throughout": known_throughout(levels, answers, dataset.taxonomy),
    }


def known_levels(answers: Answers, table: NoveltyTable, taxonomy: Taxonomy, record: NoveltyRecord) -> NDArray[np.bool_]:
    """bool [images, levels]: whether each image is known at each level of its predicted path (see
    `Thresholds.known`)."""
    kind: Kind = "hierarchical" if table.groups == taxonomy.groups else "flat"
    thresholds = Thresholds.of(taxonomy, kind, table.prototype_child.tolist(), record.score, record.thresholds)
    return thresholds.known(predicted_path(answers, taxonomy), answers.novelty[record.score])


def predicted_path(answers: Answers, taxonomy: Taxonomy) -> NDArray[np.int64]:
    """int64 [images, levels]: the nodes on the path to the most probable leaf, with −1 below it."""
    leaves = list(taxonomy.leaves)
    return np.asarray(taxonomy.path_at_level[leaves][answers.log_probability[:, leaves].argmax(axis=1)])


def known_throughout(levels: NDArray[np.bool_], answers: Answers, taxonomy: Taxonomy) -> float:
    """The share of images that are known at every level of their predicted path."""
    return float((levels == (predicted_path(answers, taxonomy) >= 0)).all(axis=1).mean())
