"""From distance to similarity: one home for the formulas that training and the exported graph share."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from protoserve.errors import InputError, nearest

Similarity = Literal["log1p", "log-ratio"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


def similarity(distance: Tensor, form: Similarity, epsilon: float) -> Tensor:
    """The similarity of squared distances ‖z−p‖² ≥ 0, elementwise and falling.

    `log1p`: log(1 + 1/(d + ε)) (Hase et al. 2019, ε = 1e-4), greatest value log(1 + 1/ε).
    `log-ratio`: log((d + 1)/(d + ε)) (Chen et al. 2019, eq. 2, ε = 1e-4), greatest value log(1/ε).

    >>> float(similarity(torch.tensor(0.0), "log-ratio", 0.1))  # doctest: +ELLIPSIS
    2.302...
    """
    if form == "log1p":
        return torch.log1p(1.0 / (distance + epsilon))
    if form == "log-ratio":
        return torch.log((distance + 1.0) / (distance + epsilon))
    raise InputError(f"no similarity {form!r}{nearest(form, SIMILARITIES)}; it is one of {', '.join(SIMILARITIES)}")
