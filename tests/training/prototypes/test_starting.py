"""Where prototypes start: at centres of the chosen cells of their own class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Taxonomy
from training.prototypes.starting import start_from_data


def test_prototypes_start_in_the_chosen_cells_of_their_own_class() -> None:
    """Cells of column 0 are near 0, of column 1 near their leaf's own value; inner nodes see column 1 alone."""
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B"])
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 1, 1), 2)
    leaves = np.repeat(np.arange(3), 4)

    def latent(numbers: NDArray[np.int64]) -> Tensor:
        found = torch.zeros(len(numbers), 2, 1, 2)
        found[:, :, 0, 1] = torch.from_numpy(leaves[numbers] + 1.0).float()[:, None]
        return found + 1e-3 * torch.randn(found.shape)

    def mask(child: int, numbers: NDArray[np.int64]) -> Tensor | None:
        if child in taxonomy.leaves:
            return None
        assert set(leaves[numbers]) <= set(np.flatnonzero(taxonomy.leaves_below[child]))
        return torch.tensor([False, True]).expand(len(numbers), 1, 2)

    start_from_data(head, latent, leaves, 0, mask, lambda count: None)
    found = {
        taxonomy.names[child]: head.prototypes[place].tolist()
        for place, child in enumerate(head.grouping.prototype_child.tolist())
    }
    # Leaves' centres lie half-way between the columns, their parent's half-way between its leaves' own values.
    expected = {taxonomy.names[leaf]: (place + 1) / 2 for place, leaf in enumerate(taxonomy.leaves)}
    expected["A"] = expected["A/x"] + expected["A/y"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx([value, value], abs=0.02), name
