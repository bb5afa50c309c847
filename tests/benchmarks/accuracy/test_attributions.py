"""Attributions of a plain classifier, beside cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.accuracy.attributions import (
    PlainClassifier,
    gradient_methods,
    layer_cam,
    node_scores,
    sampling_methods,
    squares,
)
from protoserve.networks.backbones import Backbone
from protoserve.networks.network import LinearNetwork
from protoserve.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_paths(["A/x", "A/y", "B"])
SIDE = 32


class Cells(nn.Module):
    """A backbone without weights: the mean of the first channel in each of 4 × 4 cells, and its negative."""

    def forward(self, pictures: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(pictures[:, :1], SIDE // 4)
        return torch.cat([mean, -mean], dim=1)


@pytest.fixture
def plain() -> PlainClassifier:
    """Redness speaks for A/x, its lack for B; A/y has no weights."""
    network = LinearNetwork(Backbone("cells", Cells(), channels=2, stride=8), TAXONOMY)  # type: ignore[arg-type]
    nn.init.zeros_(network.linear.bias)
    x, y, b = (TAXONOMY.leaves.index(TAXONOMY.index[name]) for name in ("A/x", "A/y", "B"))
    with torch.no_grad():
        network.linear.weight[[x, y, b]] = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    return PlainClassifier(network)


def picture(row: int, column: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """ImageNet's mean colour, rounded, with a red square at a cell."""
    pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:] = (124, 116, 104)
    pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, 0] = 255
    return pixels


def test_the_score_of_a_node_sums_its_leaves(plain: PlainClassifier) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    scores = dict(zip(TAXONOMY.names, node_scores(plain.network, logits)[0].tolist(), strict=True))
    by_leaf = dict(zip((TAXONOMY.names[leaf] for leaf in TAXONOMY.leaves), logits[0].tolist(), strict=True))
    assert scores["B"] == pytest.approx(by_leaf["B"])
    assert scores["A"] == pytest.approx(math.log(math.exp(by_leaf["A/x"]) + math.exp(by_leaf["A/y"])))
    # The scores of a level, normalised, are its probabilities.
    level = torch.tensor([scores["A"], scores["B"]]).log_softmax(0)
    found = plain.network.node_log_probability(logits)[0]
    assert torch.allclose(level, found[[TAXONOMY.index["A"], TAXONOMY.index["B"]]], atol=1e-6)


def test_layer_cam_is_worked_by_hand() -> None:
    # Channel 0 speaks for the node in the first cell and against it in the second; channel 1 is negative.
    activations = torch.tensor([[[[2.0, 5.0]], [[-3.0, 1.0]]]])
    gradients = torch.tensor([[[[1.5, -4.0]], [[2.0, 0.5]]]])
    # 2 · 1.5 − 3 · 2 < 0, and 5 · 0 + 1 · 0.5.
    assert layer_cam(activations, gradients).tolist() == [[[[0.0, 0.5]]]]


def test_a_map_is_placed_at_the_centres_of_its_cells(plain: PlainClassifier) -> None:
    weights = torch.zeros(1, 1, 4, 4)
    weights[0, 0, 1, 2] = 8
    placed = plain.placed(weights, (SIDE, SIDE))
    # Pixels 11 and 12 lie on both sides of the centre of the row of cells that starts at 8.
    rows, columns = np.nonzero(placed == placed.max())
    assert sorted(set(rows.tolist())) == [11, 12] and sorted(set(columns.tolist())) == [19, 20]
    assert placed.max() == pytest.approx(8 * (1 - 0.5 / 8) ** 2)


def test_squares_are_numbered_row_by_row() -> None:
    assert squares(4, 6, side=2)[0, 0].tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2


def test_every_method_finds_the_only_place_that_speaks_for_a_node(plain: PlainClassifier) -> None:
    # Its import takes most of the time.
    pytest.importorskip("captum", reason="needs the extra `bench`")
    scores = torch.inference_mode()(lambda pictures: plain.scores(plain.network.normalise(pictures)))
    methods = {**gradient_methods(plain), **sampling_methods(scores, lime_samples=100, shap_samples=100)}
    assert len(methods) == 5
    for name, attribute in methods.items():
        found = attribute(picture(2, 1), TAXONOMY.index["A/x"])
        row, column = np.unravel_index(found.argmax(), found.shape)
        assert (int(row) // 8, int(column) // 8) == (2, 1), name
