"""What prototypes tell apart, for a report."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.novelty import NoveltyTable
from protoserve.reporting.prototypes import Neighbour, ReportedPrototype, group_separations, told_apart
from protoserve.run.records import Purity, Separation
from protoserve.similarity_statistics import SimilaritySums
from protoserve.taxonomy import Taxonomy


def prototype(number: int, parent: str, effect: float | None) -> ReportedPrototype:
    separation = None
    if effect is not None:
        separation = Separation(own=2.0, siblings=1.0, effect=effect, always_on=effect < 0.5)
    return ReportedPrototype(number, "A/x", parent, 1.0, "a\n.png", 0, Purity(own=1, nearest=2), separation)


def test_prototypes_are_counted_per_parent() -> None:
    found = group_separations(
        [prototype(0, "", 1.0), prototype(1, "A", 0.25), prototype(2, "A", 0.75), prototype(3, "B", None)]
    )
    assert [(row.parent, row.prototypes, row.telling, row.always_on) for row in found] == [
        ("", 1, 1, 0),
        ("A", 2, 0, 1),
    ]
    assert found[1].effect == pytest.approx(0.5)


def test_siblings_come_by_how_well_they_are_told_apart() -> None:
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "A/z", "B"])
    children = [taxonomy.index["A/x"]] * 2
    sums = SimilaritySums(taxonomy, NoveltyTable.of(taxonomy, "hierarchical", children))
    leaves = np.array([taxonomy.leaves.index(taxonomy.index[name]) for name in ("A/x", "A/x", "A/y", "A/y", "A/z")])
    similarity = np.array([[3.0, 1.0], [1.0, 1.2], [1.0, 1.0], [-1.0, 1.4], [2.0, 5.0]])
    sums.add(similarity, leaves)
    labels = [node[-1] for node in taxonomy.nodes]
    first, second = told_apart(sums, labels)
    # Means 2, 0 and 2; deviations 1, 1 and 0.
    assert [label for label, _ in first] == ["y", "z"]
    assert [effect for _, effect in first] == pytest.approx([2.0, 0.0])
    assert [label for label, _ in second] == ["y", "z"] and second[1][1] < -10


def test_the_document_names_the_siblings_told_best_and_least() -> None:
    apart = [(f"s{place}", 9.0 - place) for place in range(9)]
    near = [Neighbour(4, "A/y", False, "b.png"), Neighbour(5, "A/x", True, "a.png")]
    images = {("a.png", "A/x"): 0}
    found = ReportedPrototype(7, "A/x", "A", -0.12345, "a\n.png", None, apart=apart, neighbours=near).document(images)
    assert [label for label, _ in found["apart"]] == ["s0", "s1", "s2", "s6", "s7", "s8"]
    assert found["near"] == [[4, 1, 0], [5, 0, 1]] and found["image"] == "a\\n.png"
    assert list(images) == [("a.png", "A/x"), ("b.png", "A/y")]
    assert found["weight"] == -0.123 and found["picture"] is None and found["separation"] is None
