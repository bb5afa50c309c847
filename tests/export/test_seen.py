"""The region that a network without tiles looks at, against networks whose reach is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.seen import measure_reach
from protoserve.networks.backbones import Backbone
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.network import PrototypeNetwork
from protoserve.taxonomy import Taxonomy


class Blocks(nn.Module):
    """Cells of 8 pixels, each the mean of the block of pixels around it that is `reach` cells wide and high."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8 * reach, 8, 8 * (reach - 1) // 2)

    def forward(self, pictures: Tensor) -> Tensor:
        pooled: Tensor = self.pool(pictures)
        return pooled


def network(reach: int) -> PrototypeNetwork:
    torch.manual_seed(0)
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B"])
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 2), 4)
    backbone = Backbone("blocks", Blocks(reach), 3, 8)  # type: ignore[arg-type]  # any module has its interface
    return PrototypeNetwork(backbone, head, None).eval()


@pytest.mark.parametrize("reach", [1, 3])
def test_the_reach_holds_the_share_of_an_even_block(reach: int) -> None:
    """The gradient is even over a square of 8 · reach pixels; a box of half its side holds a quarter of it."""
    samples = np.random.default_rng(0).integers(0, 255, (4, 96, 64, 3), dtype=np.uint8)
    down, across = measure_reach(network(reach), samples, share=0.25)
    # A box at the picture's edge is cut off, which shortens some.
    assert 2 * reach - 1 <= down <= 2 * reach + 1
    assert across == down


def test_a_wider_network_sees_more_and_a_larger_share_takes_more() -> None:
    samples = np.random.default_rng(1).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    narrow, wide = measure_reach(network(1), samples), measure_reach(network(3), samples)
    assert narrow[0] < wide[0] and narrow[1] < wide[1]
    assert measure_reach(network(3), samples, share=0.99)[0] > measure_reach(network(3), samples, share=0.3)[0]


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        measure_reach(network(1), np.zeros((1, 64, 64, 3), dtype=np.uint8), share=1.5)
