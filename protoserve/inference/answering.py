"""Answers: how deep a prediction may be taken at its word; see `protoserve.promise`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import Bundle
from protoserve.novelty import NoveltyTable
from protoserve.promise.calibration import Calibration, read_calibration
from protoserve.promise.threshold import Threshold, answer_levels
from protoserve.restriction import Restriction
from protoserve.schema import Answer
from protoserve.taxonomy import Taxonomy

# Thresholds kept, one per restriction and precision that were asked for.
_KEPT: Final = 256


@dataclass(frozen=True)
class Answering:
    """What a bundle's answers need: its calibration pictures, its default `precision`, its `confidence`, and
    `group_of` int64 [nodes], that of `NoveltyTable.group_of`."""

    calibration: Calibration
    precision: float
    confidence: float
    group_of: NDArray[np.int64]
    _kept: dict[tuple[bytes, bytes, float], Threshold] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, model: Model) -> Answering | None:
        """Read what a bundle promises; None for an ensemble and for a bundle without a promise.

        Raises BundleError for damaged calibration pictures.
        """
        if not isinstance(model, Bundle) or model.manifest.promise is None:
            return None
        promise, taxonomy = model.manifest.promise, model.taxonomy
        table = NoveltyTable.of(taxonomy, model.kind, ())
        pictures = read_calibration(model.directory / promise.folder, len(taxonomy.leaves), len(table.groups))
        return cls(pictures, promise.precision, promise.confidence, table.group_of(model.kind))

    def threshold(self, restriction: Restriction, precision: float) -> Threshold:
        """Return the threshold of a precision, for pictures that the restriction allows; kept for the next request."""
        key = (restriction.log_weight.tobytes(), restriction.end.tobytes(), precision)
        found = self._kept.get(key)
        if found is None:
            found = self.calibration.threshold(restriction, self.group_of, precision, self.confidence)
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = found
        return found


def answers(
    path: NDArray[np.int64],
    log_probability: NDArray[np.floating[Any]],
    known: Sequence[Sequence[bool]] | None,
    restriction: Restriction,
    precision: float,
    threshold: Threshold,
) -> list[Answer]:
    """Make the answer of each image.

    `path` int64 [images, levels] is −1 below its end, and `log_probability` float [images, levels] that of its nodes;
    `known` [images][levels] is None without novelty thresholds.
    """
    probability = np.where(path >= 0, np.exp(log_probability.astype(np.float64)), 0.0)
    ends = (path >= 0).sum(axis=1)
    through = ends if known is None else np.array([sum(levels) for levels in known], dtype=np.int64)
    level = answer_levels(probability, through, np.inf if threshold.value is None else threshold.value)
    level = np.maximum(level, np.minimum(restriction.certain_levels, ends))
    names, taxonomy = restriction.taxonomy.names, restriction.taxonomy
    result = []
    for image, own in enumerate(level.tolist()):
        node = int(path[image, own - 1]) if own else None
        if own == ends[image]:
            only = node is not None and bool(restriction.only_child[node])
            reason = "only allowed child" if only or own <= restriction.certain_levels else _end(restriction, node)
        elif threshold.value is None:
            reason = f"stops: {'too few pictures for' if threshold.too_few else 'below'} {precision:g}"
        elif through[image] <= own and probability[image, own] >= threshold.value:
            reason = f"stops: unknown below {_label(taxonomy, node)}"
        else:
            reason = f"stops: below {precision:g}"
        result.append(Answer(node=None if node is None else names[node], level=own, precision=precision, reason=reason))
    return result


def _end(restriction: Restriction, node: int | None) -> str:
    """The reason of an answer at the end of its path, which may be that of a `depth`."""
    return "stops: as deep as asked" if node is not None and restriction.cut[node] else "confident"


def _label(taxonomy: Taxonomy, node: int | None) -> str:
    return "the root" if node is None else taxonomy.nodes[node][-1]
