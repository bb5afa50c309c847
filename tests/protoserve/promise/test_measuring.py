"""What a promise is worth on pictures: counts by level, re-splits, and warnings of too few pictures."""

from __future__ import annotations

import numpy as np

from protoserve.promise.measuring import answer_scores, joined, promise_metrics, resplits, warnings
from protoserve.promise.threshold import Walks

WALKS = Walks(
    probability=np.array([[0.9, 0.9], [0.9, 0.6], [0.9, 0.9], [0.4, 0.3]]),
    known=np.array([2, 2, 2, 2]),
    right=np.array([2, 0, 1, 2]),
)


def calibrated(images: int, seed: int = 0) -> Walks:
    """Pictures of one level whose probabilities are true, and most of them high."""
    generator = np.random.default_rng(seed)
    probability = 1 - generator.uniform(0, 0.9, images) ** 3
    right = generator.random(images) < probability
    return Walks(probability[:, None], np.ones(images, dtype=np.int64), right.astype(np.int64))


def test_answers_are_counted_at_their_own_level() -> None:
    found = answer_scores(WALKS, 0.8)
    assert found.answered == {"level_1": 1, "level_2": 2, "all": 3}
    assert found.right == {"level_1": 0, "level_2": 1, "all": 1}
    assert answer_scores(WALKS, None).answered == {"level_1": 0, "level_2": 0, "all": 0}


def test_metrics_hold_the_stated_precisions_and_the_runs_own() -> None:
    metrics = promise_metrics(calibrated(3000), 0.8, 0.95)
    assert list(metrics.thresholds) == ["0.8", "0.9", "0.95", "0.99"]
    assert metrics.images == 3000
    others = calibrated(50_000, seed=1)
    for stated in ("0.8", "0.9", "0.95"):
        found = answer_scores(others, metrics.thresholds[stated])
        precision = found.right["all"] / found.answered["all"]
        assert float(stated) - 0.005 < precision < float(stated) + 0.03


def test_too_few_pictures_are_said_to_be() -> None:
    few, unsure = warnings(promise_metrics(calibrated(40), 0.95, 0.95))
    assert few == (
        "warning: 40 selection images are too few to promise a precision of 0.95 (it takes at least 72), 0.99 (it "
        "takes at least 368). Nothing is promised at these, and headlines follow the odds; add pictures to val, "
        "or raise data.hold_out"
    )
    assert "no threshold is sure to keep a precision of 0.9 on the 40 selection images" in unsure


def test_resplits_hold_the_promise_and_count_silence() -> None:
    # As strict as it gets: precision is counted on other pictures, not known.
    found = resplits(calibrated(4000), 500, 0.9, 0.95)
    assert found.rounds == 100 and found.held >= 90 and found.silent <= 5 and 0.5 < found.coverage < 1.0
    silent = resplits(calibrated(4000), 30, 0.99, 0.95, rounds=10)
    assert (silent.held, silent.silent, silent.coverage) == (10, 10, 0.0)


def test_joined_walks_keep_their_order() -> None:
    both = joined([WALKS, WALKS.rows(np.array([1]))])
    assert both.right.tolist() == [2, 0, 1, 2, 0] and both.probability[4].tolist() == [0.9, 0.6]
