"""What the old classes lose, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protoserve.errors import InputError
from protoserve.networks.head import PrototypeHead
from protoserve.taxonomy import Taxonomy
from training.extending.carrying import carried_head
from training.extending.changes import changed_tree, read_changes
from training.extending.cost import Cost, OldImages, largest_loss, refuse_loss

TREE = Taxonomy.from_paths(["x", "y", "z"])


def head_of(taxonomy: Taxonomy) -> PrototypeHead:
    """One prototype a leaf, whose similarity is the leaf's logit."""
    head = PrototypeHead(taxonomy, list(range(len(taxonomy.leaves))), 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(len(taxonomy.leaves))[None])
    return head.eval()


def test_the_cost_is_counted_on_the_images_whose_classes_stay() -> None:
    head, tree = head_of(TREE), changed_tree(TREE, read_changes([], ["y"], [], []))
    carried = carried_head(head, tree, {})
    leaves = np.array([0, 1, 2, 2])
    before = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]  # The last is wrong.
    after = np.eye(2, dtype=np.float32)[[1, 1, 1]]  # x is wrong, z is right twice.
    cost = OldImages.of(head, tree, leaves, before, after).cost(carried.head)
    assert cost == {"level_1": Cost(2 / 3, 2 / 3), "leaf": Cost(2 / 3, 2 / 3)}
    worse = OldImages.of(head, tree, leaves, before, after[:, ::-1].copy()).cost(carried.head)
    assert worse["leaf"].points == pytest.approx(100 / 3)
    assert largest_loss(worse) == worse["leaf"].points and largest_loss({}) == 0
    refuse_loss(worse, 33.4, 3)
    with pytest.raises(InputError, match=r"lose 33.33 points at level_1 \(66.67 → 33.33 % of 3 selection images\)"):
        refuse_loss(worse, 33.3, 3)


def test_nothing_is_lost_where_no_class_stays() -> None:
    head, tree = head_of(TREE), changed_tree(TREE, read_changes([], [], ["x=w"], []))
    images = OldImages.of(
        head, tree, np.zeros(0, dtype=np.int64), np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)
    )
    assert images.cost(head) == {}
