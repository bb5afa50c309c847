"""From distance to similarity: one home for the formulas that training and the exported graph share."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from protoserve.errors import InputError, nearest

Similarity = Literal["log1p", "log-ratio", "cosine", "negative-distance"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


def similarity(distance: Tensor, form: Similarity, epsilon: float, shift: float = 0.0) -> Tensor:
    """The similarity of squared distances ‖z−p‖² ≥ 0, elementwise and falling, plus `shift`.

    `log1p`: log(1 + 1/(d + ε)) (Hase et al. 2019, ε = 1e-4), greatest value log(1 + 1/ε).
    `log-ratio`: log((d + 1)/(d + ε)) (Chen et al. 2019, eq. 2, ε = 1e-4), greatest value log(1/ε).
    `cosine`: 1 − d/2, the cosine of the angle between z and p, which must be of unit length (see `on_sphere`); from 1
    down to −1, without ε (as in Wang et al. 2021, TesNet, and Donnelly et al. 2022, Deformable ProtoPNet).
    `negative-distance`: −d, without ε (Li et al. 2018, whose last layer sums distances; the weights turn their signs).

    >>> float(similarity(torch.tensor(0.0), "log-ratio", 0.1))  # doctest: +ELLIPSIS
    2.302...
    """
    if form in ("log1p", "log-ratio"):
        # Both are log(1 + c/(d + ε)). A shift goes into the logarithm: one step less over all cells.
        scale, rise = _scales(form, epsilon, shift)
        inverse = rise / (distance + epsilon)
        return torch.log1p(inverse) if shift == 0.0 else torch.log(scale + inverse)
    found = _linear(distance, form)
    return found + shift if shift != 0.0 else found


def _linear(distance: Tensor, form: Similarity) -> Tensor:
    if form == "cosine":
        return 1.0 - 0.5 * distance
    if form == "negative-distance":
        return -distance
    raise InputError(f"no similarity {form!r}{nearest(form, SIMILARITIES)}; it is one of {', '.join(SIMILARITIES)}")


def doubling(form: Similarity, epsilon: float, shift: float) -> float:
    """What to multiply one side of a product of unit vectors with for `similarity_of_product`."""
    return 2.0 / _scales(form, epsilon, shift)[1] if form in ("log1p", "log-ratio") else 2.0


def similarity_of_product(product: Tensor, form: Similarity, epsilon: float, shift: float) -> Tensor:
    """`similarity` at the squared distance 2 − 2zp of unit vectors, in as few steps as there are: from their product,
    one side of which was multiplied with `doubling`.

    For a logarithm, ε must be large beside the product's rounding (see `near`), for nothing keeps the distance from
    falling below 0 by that much.
    """
    if form in ("log1p", "log-ratio"):
        scale, rise = _scales(form, epsilon, shift)
        return torch.log(scale + torch.reciprocal((2.0 + epsilon) / rise - product))
    return similarity((2.0 - product).clamp_min(0.0), form, epsilon, shift)


def _scales(form: Similarity, epsilon: float, shift: float) -> tuple[float, float]:
    """s and r of the logarithmic similarities with their shift: log(s + r/(d + ε))."""
    scale = math.exp(shift)
    return scale, scale if form == "log1p" else scale * (1.0 - epsilon)


def similarity_at(distance: float, form: Similarity, epsilon: float) -> float:
    """The similarity of one squared distance, as `similarity` gives it."""
    if form == "log1p":
        return math.log1p(1.0 / (distance + epsilon))
    if form == "log-ratio":
        return math.log((distance + 1.0) / (distance + epsilon))
    return 1.0 - 0.5 * distance if form == "cosine" else -distance


def on_sphere(vectors: Tensor, dimension: int) -> Tensor:
    """The vectors along `dimension` brought to unit length.

    There ‖z − p‖² = 2 − 2 cos(z, p), so that everything that works with squared distances (the matrix product, the
    losses, projection) works for the cosine, too, and the nearest cell is the one with the smallest angle.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dimension, keepdim=True)
    return vectors / length.clamp_min(1e-12)
