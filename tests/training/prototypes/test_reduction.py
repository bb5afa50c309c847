"""The principal components against a decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.prototypes.reduction import CellMoments


def test_principal_components_agree_with_a_decomposition() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(6, 6)
    maps = torch.einsum("ij,njhw->nihw", mixing, torch.randn(40, 6, 5, 5)) + 3.0
    moments = CellMoments(6)
    for part in torch.split(maps, 7):
        moments.add(part)
    weight, bias, variances = moments.principal_components(3)
    cells = maps.movedim(1, -1).flatten(0, 2).double()
    _, singular, axes = torch.linalg.svd(cells - cells.mean(0), full_matrices=False)
    expected = singular[:3] ** 2 / len(cells)
    torch.testing.assert_close(variances, (expected / expected.mean()).float(), atol=1e-3, rtol=1e-3)
    for found, axis in zip(weight.double(), axes[:3], strict=True):
        assert abs(float(nn.functional.cosine_similarity(found, axis, dim=0))) == pytest.approx(1.0, abs=1e-4)
    reduced = cells.float() @ weight.t() + bias
    torch.testing.assert_close(reduced.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(reduced.var(0), variances, atol=1e-2, rtol=1e-2)
