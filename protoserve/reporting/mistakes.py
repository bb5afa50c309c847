"""The mistakes of a bundle on a labelled split: where paths leave the true ones, and both explanations of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.data.dataset import Dataset
from protoserve.images.decoded import DecodedImage
from protoserve.images.fitting import fit
from protoserve.inference.classifier import BATCH, Classifier
from protoserve.inference.engine import Outputs
from protoserve.names import one_line
from protoserve.novelty import NoveltyTable
from protoserve.pages.words import is_absence, rounded, signed, terms
from protoserve.reporting.pictures import PictureStore
from protoserve.schema import Level
from protoserve.similarity_statistics import SimilaritySums
from protoserve.taxonomy import Taxonomy

# Mistakes shown in all and of one kind; the pieces of evidence of each explanation, and the longer side of its picture.
MOST: Final = 180
MOST_ALIKE: Final = 12
PIECES: Final = 4
SIDE: Final = 240
Tracked = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class ChildConfusion:
    """Where predicted paths leave the true ones, or stay on them, among the children of `parent` (empty for the root):
    `counts` [true][predicted] over `images` whose paths agree above."""

    parent: str
    nodes: list[str]
    counts: list[list[int]]

    @property
    def images(self) -> int:
        """The number of images below the parent."""
        return sum(map(sum, self.counts))

    @property
    def mistakes(self) -> int:
        """The number of images that are not on the diagonal."""
        return self.images - sum(row[child] for child, row in enumerate(self.counts))

    def document(self) -> dict[str, Any]:
        """Return the table as JSON for the page's script."""
        return {"parent": self.parent, "nodes": self.nodes, "counts": self.counts}


@dataclass(frozen=True)
class Examined:
    """What a bundle's answers on a split of so many `images` show: how many are `right` at the leaf, the confusion, the
    mistakes as JSON for the page's script, and the similarities by class."""

    images: int
    right: int
    confusions: list[ChildConfusion]
    mistakes: list[dict[str, Any]]
    sums: SimilaritySums


def examine(classifier: Classifier, dataset: Dataset, store: PictureStore, tracked: Tracked) -> Examined:
    """Run a bundle on all pictures of a split; pictures of the mistakes shown go into the `store`."""
    taxonomy = classifier.taxonomy
    children = [taxonomy.index[record.child] for record in classifier.table.prototypes]
    sums = SimilaritySums(taxonomy, NoveltyTable.of(taxonomy, classifier.bundle.kind, children))
    predicted = np.empty(len(dataset), dtype=np.int64)
    certainty = np.empty(len(dataset))
    odds: dict[int, list[float]] = {}
    every_leaf = np.array(taxonomy.leaves)
    true = every_leaf[dataset.leaves]
    rule = classifier.bundle.input
    with tracked("predicting", len(dataset)) as advance:
        for start in range(0, len(dataset), BATCH):
            rows = range(start, min(start + BATCH, len(dataset)))
            outputs = classifier.engine.run(np.stack([fit(dataset.picture(row), rule).array for row in rows]))
            leaves = _leaf_of(outputs)
            predicted[rows.start : rows.stop] = leaves
            certainty[rows.start : rows.stop] = outputs.log_probability[np.arange(len(rows)), leaves]
            for place in np.flatnonzero(leaves != true[rows.start : rows.stop]).tolist():
                _, *nodes = parting(int(true[start + place]), int(leaves[place]), taxonomy)
                odds[start + place] = np.exp(np.minimum(outputs.log_probability[place, nodes], 0.0)).tolist()
            sums.add(outputs.similarity, dataset.leaves[rows.start : rows.stop])
            advance(len(rows))
    confusions = child_confusions(true, predicted, taxonomy)
    chosen = chosen_mistakes(true, predicted, certainty, taxonomy)
    mistakes = []
    with tracked("explaining mistakes", len(chosen)) as advance:
        for row in chosen:
            found = _mistake(classifier, dataset.picture(row), int(true[row]), store)
            # A near tie may end otherwise when a picture is asked about alone.
            if found is not None:
                mistakes.append({"image": one_line(dataset.images[row]), "probabilities": odds[row], **found})
            advance(1)
    return Examined(len(dataset), int((true == predicted).sum()), confusions, mistakes, sums)


def _leaf_of(outputs: Outputs) -> NDArray[np.int64]:
    depth = (outputs.path >= 0).sum(axis=1) - 1
    return np.asarray(outputs.path[np.arange(len(outputs)), depth])


def parting(true: int, predicted: int, taxonomy: Taxonomy) -> tuple[int, int, int]:
    """Return the level, from 0, at which two leaves' paths part, and the two nodes there."""
    ours, theirs = taxonomy.path_at_level[true], taxonomy.path_at_level[predicted]
    level = int(np.flatnonzero(ours != theirs)[0])
    return level, int(ours[level]), int(theirs[level])


def child_confusions(true: NDArray[np.int64], predicted: NDArray[np.int64], taxonomy: Taxonomy) -> list[ChildConfusion]:
    """Count where the paths to the predicted leaves leave those to the `true` leaves, both int64 [images]; parents with
    the most mistakes come first, and those without any are left out."""
    counts: dict[int, NDArray[np.int64]] = {}
    for ours, theirs in zip(true.tolist(), predicted.tolist(), strict=True):
        pairs = zip(taxonomy.path_at_level[ours].tolist(), taxonomy.path_at_level[theirs].tolist(), strict=True)
        for one, other in pairs:
            if one < 0 or other < 0:
                break
            parent = int(taxonomy.parent[one])
            siblings = taxonomy.children_of(parent)
            table = counts.setdefault(parent, np.zeros((len(siblings), len(siblings)), dtype=np.int64))
            table[one - siblings.start, other - siblings.start] += 1
            if one != other:
                break
    found = [
        ChildConfusion(
            "" if parent < 0 else taxonomy.names[parent],
            [taxonomy.names[child] for child in taxonomy.children_of(parent)],
            table.tolist(),
        )
        for parent, table in counts.items()
    ]
    return sorted((table for table in found if table.mistakes), key=lambda table: (-table.mistakes, table.parent))


def chosen_mistakes(
    true: NDArray[np.int64], predicted: NDArray[np.int64], certainty: NDArray[np.float64], taxonomy: Taxonomy
) -> list[int]:
    """Choose the mistakes to show, as rows: of each kind the most certain ones, the most frequent kinds first."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(true != predicted).tolist():
        _, ours, theirs = parting(int(true[row]), int(predicted[row]), taxonomy)
        kinds.setdefault((ours, theirs), []).append(row)
    chosen: list[int] = []
    for rows in sorted(kinds.values(), key=lambda rows: (-len(rows), rows[0])):
        certain = sorted(rows, key=lambda row: (-certainty[row], row))
        chosen += certain[: min(MOST_ALIKE, MOST - len(chosen))]
    return chosen


def _mistake(classifier: Classifier, decoded: DecodedImage, true: int, store: PictureStore) -> dict[str, Any] | None:
    """Explain one mistake: the evidence for the predicted node and for the true one, where their paths part.

    None if the answer is right.
    """
    taxonomy = classifier.taxonomy
    fitted = [fit(decoded, classifier.bundle.input)]
    top_k = min(PIECES, classifier.table.top_k)
    plain = classifier.predict_fitted(fitted, top_k=top_k, alternatives=0)[0]
    leaf = taxonomy.index[plain.levels[-1].node]
    if leaf == true:
        return None
    level, ours, theirs = parting(true, leaf, taxonomy)
    names, size = taxonomy.names, (decoded.width, decoded.height)
    explanations = [_explanation(_told(plain.levels, level), size)]
    if classifier.table.host_evidence is not None:
        other = classifier.predict_fitted(fitted, top_k=top_k, alternatives=0, allow=[names[true]])[0]
        explanations.append(_explanation(_told(other.levels, level), size))
    return {
        "picture": store.add(decoded.picture, SIDE, quality=50),
        "size": list(size),
        "true": names[ours],
        "predicted": names[theirs],
        "leaves": [names[true], names[leaf]],
        "explanations": explanations,
    }


def _told(levels: Sequence[Level], level: int) -> Level:
    """The level at which two paths part; where it has no evidence of its own, the deepest one, where all compete."""
    return levels[level] if levels[level].logit is not None else levels[-1]


def _explanation(level: Level, size: tuple[int, int]) -> dict[str, Any]:
    """A level's sum as JSON for the page's script; boxes in percent of the picture."""
    width, height = size
    pieces: list[dict[str, Any]] = [
        {
            "id": piece.prototype,
            "value": signed(value),
            "share": value,
            "terms": terms(piece),
            "absent": is_absence(piece),
            "box": [round(100 * part / extent, 2) for part, extent in zip(piece.box, (width, height) * 2, strict=True)],
        }
        for piece in (*level.evidence, *level.against)
        if (value := rounded(piece.contribution))
    ]
    told = sum(piece["share"] for piece in pieces)
    logit, prior = rounded(level.logit or 0.0), rounded(level.prior or 0.0)
    return {
        "node": level.node,
        "score": logit,
        "prior": signed(prior),
        "rest": signed(rounded(logit - prior - told)),
        "pieces": pieces,
    }
