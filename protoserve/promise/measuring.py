"""How a promise fares: coverage and precision by level, and how often it holds when pictures change sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from protoserve.promise.threshold import Walks, answer_levels, promised_threshold
from protoserve.run.promise_records import AnswerScores, PromiseMetrics, Resplits

# The precisions for which a run reports thresholds and scores, in addition to its own.
STATED: Final = (0.9, 0.95, 0.99)
ROUNDS: Final = 100


def answer_scores(walks: Walks, threshold: float | None) -> AnswerScores:
    """Count the answers at a threshold, by level and in `all`, and how many are right; None answers nothing."""
    level = answer_levels(walks.probability, walks.known, np.inf if threshold is None else threshold)
    right = level <= walks.right
    chosen = {f"level_{number}": level == number for number in range(1, walks.probability.shape[1] + 1)}
    chosen["all"] = level > 0
    return AnswerScores(
        images=len(walks),
        answered={name: int(own.sum()) for name, own in chosen.items()},
        right={name: int((own & right).sum()) for name, own in chosen.items()},
    )


def promise_metrics(walks: Walks, precision: float, confidence: float) -> PromiseMetrics:
    """Fit the thresholds of the stated precisions and of `precision` on calibration pictures."""
    thresholds, least = {}, {}
    for stated in sorted({*STATED, precision}):
        found = promised_threshold(walks, stated, confidence)
        thresholds[f"{stated:g}"], least[f"{stated:g}"] = found.value, found.least_images
    return PromiseMetrics(
        precision=precision, confidence=confidence, images=len(walks), thresholds=thresholds, least_images=least
    )


def promise_scores(
    walks: Walks, calibration: Walks, thresholds: Mapping[str, float | None], confidence: float
) -> dict[str, AnswerScores]:
    """Score a promise on pictures, by stated precision.

    `thresholds` are those of the promise. `resplits` of each says how often the promise holds when the `calibration`
    pictures and these change sides.
    """
    pool = joined([calibration, walks])
    return {
        stated: answer_scores(walks, threshold).model_copy(
            update={"resplits": resplits(pool, len(calibration), float(stated), confidence)}
        )
        for stated, threshold in thresholds.items()
    }


def warnings(metrics: PromiseMetrics) -> list[str]:
    """Say which stated precisions the calibration pictures can't promise, and what to do."""
    lines = []
    few = [(stated, least) for stated, least in metrics.least_images.items() if metrics.images < least]
    if few:
        takes = ", ".join(f"{stated} (it takes at least {least})" for stated, least in few)
        lines.append(
            f"warning: {metrics.images} selection images are too few to promise a precision of {takes}. Nothing is "
            f"promised at {'it' if len(few) == 1 else 'these'}, and headlines "
            "follow the odds; add pictures to val, or raise data.hold_out"
        )
    for stated, least in metrics.least_images.items():
        if metrics.images >= least and metrics.thresholds[stated] is None:
            lines.append(
                f"warning: no threshold is sure to keep a precision of {stated} on the {metrics.images} selection "
                f"images. Nothing is answered at {stated}; add pictures to val, or ask for less"
            )
    return lines


def resplits(
    pool: Walks, images: int, precision: float, confidence: float, rounds: int = ROUNDS, seed: int = 0
) -> Resplits:
    """Draw `images` of the `pool` for calibration, score the answers to the rest, and repeat.

    A round holds the promise if at least the share `precision` of the answers is right, as counted on the rest. A round
    whose calibration pictures promise nothing gives no answers, so holds; it is also counted as `silent`.
    """
    generator = np.random.default_rng(seed)
    held = silent = 0
    coverage = []
    for _ in range(rounds):
        order = generator.permutation(len(pool))
        threshold = promised_threshold(pool.rows(order[:images]), precision, confidence).value
        found = answer_scores(pool.rows(order[images:]), threshold)
        answered, right = found.answered["all"], found.right["all"]
        held += right >= precision * answered
        silent += threshold is None
        coverage.append(answered / max(1, found.images))
    return Resplits(rounds=rounds, held=int(held), silent=silent, coverage=float(np.mean(coverage)))


def joined(parts: Sequence[Walks]) -> Walks:
    """Concatenate walks on one taxonomy."""
    return Walks(
        np.concatenate([part.probability for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.concatenate([part.right for part in parts]),
    )
