"""From distance to similarity: one home for the formulas that training and the exported graph share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from protoserve.errors import InputError, nearest

SimilarityForm = Literal["log1p", "log-ratio", "cosine", "negative-distance"]
SIMILARITY_FORMS: tuple[str, ...] = get_args(SimilarityForm)


@dataclass(frozen=True)
class Similarity:
    """A formula for the similarity of squared distances d = ‖z−p‖² ≥ 0: elementwise and falling.

    `log1p`: log(1 + 1/(d + ε)) (Hase et al. 2019, ε = 1e-4), greatest value log(1 + 1/ε).
    `log-ratio`: log((d + 1)/(d + ε)) (Chen et al. 2019, eq. 2, ε = 1e-4), greatest value log(1/ε).
    `cosine`: 1 − d/2, the cosine of the angle between z and p, which must be of unit length (see `to_unit_length`);
    from 1 down to −1, without ε (as in Wang et al. 2021, TesNet, and Donnelly et al. 2022, Deformable ProtoPNet).
    `negative-distance`: −d, without ε (Li et al. 2018, whose last layer sums distances; the weights turn their signs).

    With `zero`, the formula's value at this squared distance is subtracted, so that a prototype farther away than that
    contributes against its child. As published (`zero` None), the logarithms are positive everywhere, so a child gains
    from every prototype that it has, whether that matches or not. Two random directions are a squared distance of 2
    apart.

    Raises InputError for an unknown form, or a logarithm whose ε is not positive.

    >>> Similarity("log-ratio", epsilon=0.1).at(0.0)  # doctest: +ELLIPSIS
    2.302...
    >>> Similarity("cosine", zero=2.0).of_distance(torch.tensor([0.0, 2.0, 4.0])).tolist()
    [1.0, 0.0, -1.0]
    """

    form: SimilarityForm = "log1p"
    epsilon: float = 1e-4
    zero: float | None = None

    def __post_init__(self) -> None:
        if self.form not in SIMILARITY_FORMS:
            raise InputError(
                f"no similarity {self.form!r}{nearest(self.form, SIMILARITY_FORMS)}; it is one of "
                f"{', '.join(SIMILARITY_FORMS)}"
            )
        if self.is_logarithmic and not self.epsilon > 0:
            raise InputError(
                f"epsilon is {self.epsilon}, but the similarity {self.form} needs one above 0, such as 1e-4"
            )

    @property
    def is_logarithmic(self) -> bool:
        """Whether it is a logarithm of 1/(d + ε); the others are linear in d."""
        return self.form in ("log1p", "log-ratio")

    @property
    def needs_unit_length(self) -> bool:
        """Whether it holds only for vectors of unit length."""
        return self.form == "cosine"

    @property
    def has_reference(self) -> bool:
        """Whether each prototype has a `reference` of its own, which is added to the similarity."""
        return self.form == "negative-distance"

    @property
    def shift(self) -> float:
        """What is added to the published formula so that the similarity is 0 at `zero`."""
        return 0.0 if self.zero is None else -self._published_at(self.zero)

    def at(self, distance: float) -> float:
        """The similarity of one squared distance, in float64."""
        return self._published_at(distance) + self.shift

    def of_distance(self, distance: Tensor, reference: Tensor | None = None) -> Tensor:
        """The similarities of squared distances of any shape, plus their prototypes' `reference` where there is one."""
        if self.is_logarithmic:
            # Both are log(1 + c/(d + ε)). A shift goes into the logarithm: one step less over all cells.
            scale, rise = self._scales()
            inverse = rise / (distance + self.epsilon)
            similarity = torch.log1p(inverse) if self.shift == 0.0 else torch.log(scale + inverse)
        else:
            similarity = 1.0 - 0.5 * distance if self.form == "cosine" else -distance
            if self.shift != 0.0:
                similarity = similarity + self.shift
        return similarity if reference is None else similarity + reference

    def of_product(self, product: Tensor, reference: Tensor | None = None) -> Tensor:
        """`of_distance` at 2 − 2zp, the distance of unit vectors, from the `product` of z and `product_factor` p.

        It takes as few steps as possible. For a logarithm, ε must be large beside the product's rounding (see
        `protoserve.networks.distances.refinement_radius`): the distance can fall below 0 by as much.
        """
        if not self.is_logarithmic:
            return self.of_distance((2.0 - product).clamp_min(0.0), reference)
        scale, rise = self._scales()
        similarity = torch.log(scale + torch.reciprocal((2.0 + self.epsilon) / rise - product))
        return similarity if reference is None else similarity + reference

    @property
    def product_factor(self) -> float:
        """The factor of one side of a product of unit vectors that `of_product` takes."""
        return 2.0 / self._scales()[1] if self.is_logarithmic else 2.0

    def _published_at(self, distance: float) -> float:
        if self.form == "log1p":
            return math.log1p(1.0 / (distance + self.epsilon))
        if self.form == "log-ratio":
            return math.log((distance + 1.0) / (distance + self.epsilon))
        return 1.0 - 0.5 * distance if self.form == "cosine" else -distance

    def _scales(self) -> tuple[float, float]:
        """s and r of the logarithmic similarities with their shift: log(s + r/(d + ε))."""
        scale = math.exp(self.shift)
        return scale, scale if self.form == "log1p" else scale * (1.0 - self.epsilon)


def to_unit_length(vectors: Tensor, dimension: int) -> Tensor:
    """The vectors along `dimension` brought to unit length.

    There ‖z − p‖² = 2 − 2 cos(z, p), so that everything that works with squared distances (the matrix product, the
    losses, projection) works for the cosine, too, and the nearest cell is the one with the smallest angle.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dimension, keepdim=True)
    return vectors / length.clamp_min(1e-12)
