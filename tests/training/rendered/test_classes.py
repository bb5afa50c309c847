"""The tree of classes and the parts that decide in it."""

from __future__ import annotations

from training.rendered.classes import DECISIVE_PARTS, PARTS, decisive_indices, leaf_paths, part_index


def test_the_tree_has_three_levels_and_a_choice_at_every_node() -> None:
    assert len(leaf_paths()) == len(set(leaf_paths())) == 16
    for node in DECISIVE_PARTS:
        parent, _, _ = node.rpartition("/")
        siblings = [other for other in DECISIVE_PARTS if other.rpartition("/")[0] == parent]
        assert len(siblings) >= 2, node


def test_the_parts_have_the_indices_that_masks_on_disk_use() -> None:
    assert len(set(PARTS)) == len(PARTS)
    assert [part_index(part) for part in PARTS] == [*range(1, len(PARTS) + 1)]
    # New parts come after these: masks that lie on disk use the numbers.
    assert (part_index("body"), part_index("wheel"), part_index("container")) == (1, 18, 33)


def test_siblings_share_no_decisive_part() -> None:
    for leaf in leaf_paths():
        own = set(decisive_indices(leaf)[2])
        parent = "/".join(leaf[:2])
        siblings = [other for other in leaf_paths() if "/".join(other[:2]) == parent and other != leaf]
        for other in siblings:
            assert not own & set(decisive_indices(other)[2]), (leaf, other)
