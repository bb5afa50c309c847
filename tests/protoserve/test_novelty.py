"""Scores of novelty against loops in double precision, and thresholds along a path."""

import numpy as np
import pytest

from protoserve.novelty import SCORES, NoveltyTable, Thresholds, fit_thresholds, parent_names, threshold
from protoserve.schema import NoveltyScore
from protoserve.taxonomy import Kind, Taxonomy

# A(0) B(1) C(2) | A/x(3) A/y(4) C/only(5) | A/x/i(6) A/x/j(7) A/x/k(8)
TREE = Taxonomy.from_paths(["A/x/i", "A/x/j", "A/x/k", "A/y", "B", "C/only"])
CHILD = [0, 0, 1, 2, 3, 3, 4, 6, 6, 7, 8]
GROUPS = [[0, 1, 2], [3, 4], [6, 7, 8]]


def arrays(images: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random logits and similarities, and the log-probabilities that follow from the logits."""
    generator = np.random.default_rng(seed)
    logit = np.zeros((images, len(TREE.nodes)))
    conditional = np.zeros_like(logit)
    for group in GROUPS:
        logit[:, group] = 3 * generator.normal(size=(images, len(group)))
        conditional[:, group] = logit[:, group] - np.log(np.exp(logit[:, group]).sum(axis=1, keepdims=True))
    log_probability = np.zeros_like(logit)
    for node in range(len(TREE.nodes)):
        above = [at for at in TREE.path_at_level[node] if at >= 0]
        log_probability[:, node] = conditional[:, above].sum(axis=1)
    similarity = generator.random((images, len(CHILD)))
    return log_probability.astype(np.float32), logit.astype(np.float32), similarity.astype(np.float32)


def by_hand(score: str, logit: np.ndarray, similarity: np.ndarray, group: list[int]) -> float:
    logits = logit[group].astype(np.float64)
    best = group[int(logits.argmax())]
    probability = np.exp(logits.max()) / np.exp(logits).sum()
    own = np.mean([similarity[number] for number, child in enumerate(CHILD) if child == best])
    scores: dict[str, float] = {
        "energy": np.log(np.exp(logits).sum()),
        "probability": probability,
        "similarity": max(similarity[number] for number, child in enumerate(CHILD) if child in group),
        "own-similarity": own,
        "support": own * probability,
    }
    return scores[score]


@pytest.mark.parametrize("score", SCORES)
def test_scores_against_a_loop(score: NoveltyScore) -> None:
    found = NoveltyTable.of(TREE, "hierarchical", CHILD).scores(score, *arrays())
    _, logit, similarity = arrays()
    expected = [[by_hand(score, logit[i], similarity[i], group) for group in GROUPS] for i in range(len(logit))]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("score", SCORES)
def test_the_order_of_prototypes_changes_nothing(score: NoveltyScore) -> None:
    log_probability, logit, similarity = arrays()
    expected = NoveltyTable.of(TREE, "hierarchical", CHILD).scores(score, log_probability, logit, similarity)
    order = np.random.default_rng(1).permutation(len(CHILD))
    table = NoveltyTable.of(TREE, "hierarchical", [CHILD[number] for number in order])
    found = table.scores(score, log_probability, logit, similarity[:, order])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_energy_of_centred_logits_is_that_of_the_logits_as_trained(shuffled: bool) -> None:
    """Centring subtracts Σ mean weight × similarity from all logits of a group."""
    log_probability, trained, similarity = arrays()
    generator = np.random.default_rng(2)
    common = generator.normal(size=len(CHILD)).astype(np.float32)
    centred = trained.copy()
    for group in GROUPS:
        own = [number for number, child in enumerate(CHILD) if child in group]
        centred[:, group] -= (similarity[:, own] @ common[own])[:, None]
    order = generator.permutation(len(CHILD)) if shuffled else np.arange(len(CHILD))
    table = NoveltyTable.of(TREE, "hierarchical", [CHILD[number] for number in order], common[order])
    found = table.scores("energy", log_probability, centred, similarity[:, order])
    expected = NoveltyTable.of(TREE, "hierarchical", CHILD).scores("energy", *arrays())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(centred - trained).max() > 0.5


def test_probability_follows_the_temperature_that_the_graph_applied() -> None:
    log_probability, logit, similarity = arrays()
    # At the root alone the logits were divided by 3.
    cooled = logit[:, GROUPS[0]].astype(np.float64) / 3
    relative = cooled - np.log(np.exp(cooled).sum(axis=1, keepdims=True))
    log_probability[:, GROUPS[0]] = relative
    found = NoveltyTable.of(TREE, "hierarchical", CHILD).scores("probability", log_probability, logit, similarity)
    np.testing.assert_allclose(found[:, 0], np.exp(relative.max(axis=1)), rtol=1e-5)


def test_without_a_hierarchy_all_leaves_are_one_group() -> None:
    leaves = list(TREE.leaves)
    table = NoveltyTable.of(TREE, "flat", leaves)
    logit = np.zeros((2, len(TREE.nodes)), dtype=np.float32)
    logit[:, leaves] = np.random.default_rng(0).normal(size=(2, len(leaves)))
    found = table.scores("energy", logit, logit, np.zeros((2, len(leaves)), dtype=np.float32))
    np.testing.assert_allclose(found, np.log(np.exp(logit[:, leaves]).sum(axis=1, keepdims=True)), rtol=1e-6)
    assert table.group_of("flat").tolist() == [0] * len(TREE.nodes)


def test_support_rises_with_probability_whatever_the_sign_of_the_similarity() -> None:
    table = NoveltyTable.of(TREE, "hierarchical", CHILD)
    logit = np.zeros((2, len(TREE.nodes)), dtype=np.float32)
    logit[:, 0] = [1.0, 3.0]
    for sign in (1, -1):
        similarity = np.full((2, len(CHILD)), 0.7 * sign, dtype=np.float32)
        found = table.scores("support", logit, logit, similarity)[:, 0]
        assert found[0] < found[1]


def test_a_plain_classifier_has_no_similarities() -> None:
    assert NoveltyTable.of(TREE, "flat", []).available == ("energy", "probability")
    assert NoveltyTable.of(TREE, "hierarchical", CHILD).available == SCORES


def test_unlikely_parents_still_get_a_probability() -> None:
    log_probability, logit, similarity = arrays()
    log_probability[:, GROUPS[2]] -= 500.0
    found = NoveltyTable.of(TREE, "hierarchical", CHILD).scores("probability", log_probability, logit, similarity)
    expected = NoveltyTable.of(TREE, "hierarchical", CHILD).scores("probability", *arrays())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("rate", "expected"), [(0.5, 6.0), (0.95, 1.0), (0.9, 2.0), (0.89, 2.0), (0.05, 10.0)])
def test_the_threshold_lets_the_stated_share_pass_and_no_more_than_needed(rate: float, expected: float) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 11.0))
    found = threshold(scores, rate)
    assert found == expected
    assert (scores >= found).mean() >= rate
    assert (scores > found).mean() < rate


@pytest.mark.parametrize("rate", [0.8, 0.9, 0.95, 0.99])
def test_a_rate_that_no_float_holds_is_met_exactly(rate: float) -> None:
    scores = np.arange(100.0)
    assert (scores >= threshold(scores, rate)).mean() == pytest.approx(rate)


def thresholds(least: dict[str, float], kind: Kind = "hierarchical") -> Thresholds:
    return Thresholds.of(TREE, kind, CHILD, "energy", least)


def test_below_an_unknown_level_all_levels_are_unknown() -> None:
    path = TREE.path_at_level[[6, 6, 6, 6, 1]]
    least = thresholds({"": 1.0, "A": 1.0, "A/x": 1.0})
    scores = np.array([[2, 2, 2], [2, 2, 0], [2, 0, 2], [0, 2, 2], [1, 0, 0]], dtype=np.float32)
    assert least.known(path, scores).tolist() == [
        [True, True, True],
        [True, True, False],
        [True, False, False],
        [False, False, False],
        # A leaf at level 1, exactly at the threshold; deeper there is nothing.
        [True, False, False],
    ]


def test_only_children_and_children_of_parents_without_a_threshold_are_as_known_as_their_parent() -> None:
    path = TREE.path_at_level[[5, 5, 8]]
    scores = np.array([[2, -9, -9], [0, 9, 9], [2, -9, 2]], dtype=np.float32)
    found = thresholds({"": 1.0, "A/x": 1.0}).known(path, scores)
    assert found.tolist() == [[True, True, False], [False, False, False], [True, True, True]]


def test_the_only_threshold_of_a_flat_model_decides_for_every_level() -> None:
    path = TREE.path_at_level[[6, 6]]
    found = thresholds({"": 1.0}, kind="flat").known(path, np.array([[2.0], [0.0]], dtype=np.float32))
    assert found.tolist() == [[True] * 3, [False] * 3]


def test_parents_go_by_their_path() -> None:
    assert parent_names(TREE.groups, TREE) == ["", "A", "A/x"]


@pytest.mark.parametrize(("images", "rate"), [(19, 0.95), (40, 0.95), (7, 0.8)])
def test_a_known_picture_reaches_its_threshold_with_the_rate(images: int, rate: float) -> None:
    generator = np.random.default_rng(0)
    reached = []
    for _ in range(3000):
        scores = generator.normal(size=(images + 1, 1))
        fitted = fit_thresholds(scores[:-1], np.ones((images, 1), dtype=np.bool_), rate)
        assert fitted.images.tolist() == [images] and not fitted.pooled[0]
        reached.append(scores[-1, 0] >= fitted.minimum[0])
    # Exact: (n + 1 − k) / (n + 1); three standard errors of 3000 draws are 0.012 to 0.022.
    assert np.mean(reached) > rate - 0.02


def test_groups_with_few_pictures_pool_them() -> None:
    generator = np.random.default_rng(1)
    reached: list[bool] = []
    for _ in range(400):
        # Ten groups of five pictures; the groups' scores differ.
        centre = np.repeat(generator.normal(0, 1, 10), 6)
        scores = (centre + generator.normal(size=60))[:, None] * np.ones(10)
        below = np.repeat(np.eye(10, dtype=np.bool_), 6, axis=0)
        last = np.arange(5, 60, 6)
        fitted = fit_thresholds(np.delete(scores, last, axis=0), np.delete(below, last, axis=0), 0.95)
        assert fitted.pooled.all() and (fitted.images == 5).all()
        reached += (scores[last, 0] >= fitted.minimum).tolist()
    assert np.mean(reached) > 0.94
    # The smallest of five, as before, is reached by 5 of 6.


def test_a_pool_of_too_few_sets_no_threshold() -> None:
    scores, below = np.zeros((4, 3)), np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.bool_)
    fitted = fit_thresholds(scores, below, 0.95)
    assert (fitted.minimum == -np.inf).all()
    assert fitted.pooled.tolist() == [True, True, False] and fitted.images.tolist() == [2, 2, 0]
