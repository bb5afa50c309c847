"""Mistakes: where paths part, which are shown, and their explanations."""

from __future__ import annotations

import numpy as np
import pytest

import protoserve
from protoserve.data.dataset import Dataset
from protoserve.reporting import mistakes as module
from protoserve.reporting.mistakes import Examined, child_confusions, chosen_mistakes, parting
from protoserve.reporting.pictures import PictureStore
from protoserve.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_paths(["A/x", "A/y", "B/u/v", "B/w"])


def nodes(*names: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([TAXONOMY.index[name] for name in names], dtype=np.int64)


def test_paths_part_at_the_first_level_that_differs() -> None:
    index = TAXONOMY.index
    assert parting(index["A/x"], index["A/y"], TAXONOMY) == (1, index["A/x"], index["A/y"])
    assert parting(index["B/u/v"], index["A/y"], TAXONOMY) == (0, index["B"], index["A"])


def test_each_mistake_counts_once_where_its_path_parts() -> None:
    true = nodes("A/x", "A/x", "A/x", "B/u/v", "B/w")
    predicted = nodes("A/x", "A/y", "B/w", "B/u/v", "B/u/v")
    root, inner_a, inner_b = sorted(child_confusions(true, predicted, TAXONOMY), key=lambda table: table.parent)
    assert (root.parent, root.nodes, root.counts, root.mistakes) == ("", ["A", "B"], [[2, 1], [0, 2]], 1)
    assert (inner_a.nodes, inner_a.counts, inner_a.images) == (["A/x", "A/y"], [[1, 1], [0, 0]], 2)
    assert (inner_b.nodes, inner_b.counts, inner_b.mistakes) == (["B/u", "B/w"], [[1, 0], [1, 0]], 1)
    assert child_confusions(true, true, TAXONOMY) == []


def test_the_most_certain_mistakes_of_the_most_frequent_kinds_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ALIKE", 2)
    true = nodes("A/x", "B/w", "A/x", "A/x", "A/x", "B/w")
    predicted = nodes("A/y", "A/y", "A/y", "A/x", "A/y", "B/u/v")
    certainty = np.log([0.4, 0.9, 0.8, 0.99, 0.6, 0.5])
    assert chosen_mistakes(true, predicted, certainty, TAXONOMY) == [2, 4, 1, 5]
    monkeypatch.setattr(module, "MOST", 3)
    assert chosen_mistakes(true, predicted, certainty, TAXONOMY) == [2, 4, 1]


def test_the_examination_agrees_with_single_predictions(
    model: protoserve.Classifier, dataset: Dataset, examined: tuple[Examined, PictureStore]
) -> None:
    found, store = examined
    truth = [model.taxonomy.names[model.taxonomy.leaves[leaf]] for leaf in dataset.leaves]
    answers = [model.predict(dataset.file(row), top_k=4) for row in range(len(dataset))]
    right = sum(answer.levels[-1].node == leaf for answer, leaf in zip(answers, truth, strict=True))
    assert (found.images, found.right) == (len(dataset), right) and 0 < right < len(dataset)
    assert len(found.mistakes) == len(dataset) - right == sum(table.mistakes for table in found.confusions)
    by_image = {dataset.images[row]: (answers[row], truth[row]) for row in range(len(dataset))}
    for mistake in found.mistakes:
        answer, leaf = by_image[mistake["image"]]
        assert mistake["leaves"] == [leaf, answer.levels[-1].node]
        assert f"{leaf}/".startswith(f"{mistake['true']}/") and mistake["true"] != mistake["predicted"]
        place = mistake["predicted"].count("/")
        level = answer.levels[place]
        assert level.node == mistake["predicted"]
        assert mistake["probabilities"][1] == pytest.approx(level.probability, abs=1e-5)
        told, other = mistake["explanations"]
        assert (told["node"], other["node"]) == (mistake["predicted"], mistake["true"])
        assert told["score"] == pytest.approx(level.logit, abs=0.006)
        for explanation in (told, other):
            values = [piece["share"] for piece in explanation["pieces"]]
            prior, rest = (float(explanation[name].replace("−", "-")) for name in ("prior", "rest"))
            assert prior + sum(values) + rest == pytest.approx(explanation["score"], abs=1e-6)
            for piece in explanation["pieces"]:
                left, top, right_edge, bottom = piece["box"]
                assert 0 <= left < right_edge <= 100 and 0 <= top < bottom <= 100
        assert mistake["size"] == [90, 60] and 0 <= mistake["picture"] < len(store.encoded)
