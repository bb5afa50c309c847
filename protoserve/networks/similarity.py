"""From distance to similarity: the formulas that training and the exported graph share."""

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
    """A formula that maps squared distances d = ‖z−p‖² ≥ 0 to similarities, element by element. It decreases with d.

    `log1p`: log(1 + 1/(d + ε)) (Hase et al. 2019, ε = 1e-4); its maximum is log(1 + 1/ε).
    `log-ratio`: log((d + 1)/(d + ε)) (Chen et al. 2019, eq. 2, ε = 1e-4); its maximum is log(1/ε).
    `cosine`: 1 − d/2, the cosine of the angle between z and p, in [−1, 1]. z and p must have unit length (see
    `to_unit_length`); there is no ε (as in Wang et al. 2021, TesNet, and Donnelly et al. 2022, Deformable ProtoPNet).
    `negative-distance`: −d, without ε (Li et al. 2018, whose last layer sums distances; the weights change sign).

    With `zero`, the formula's value at this squared distance is subtracted: a prototype farther away than `zero` then
    contributes against its child. As published (`zero` None), the logarithms are positive everywhere: a child gains
    from each of its prototypes, whether it matches or not. The squared distance of two random directions is about 2.

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
        """Whether the formula is a logarithm of 1/(d + ε); the others are linear in d."""
        return self.form in ("log1p", "log-ratio")

    @property
    def needs_unit_length(self) -> bool:
        """Whether the formula is valid for vectors of unit length only."""
        return self.form == "cosine"

    @property
    def has_reference(self) -> bool:
        """Whether each prototype has its own `reference`, which is added to the similarity."""
        return self.form == "negative-distance"

    @property
    def shift(self) -> float:
        """The constant that makes the published formula 0 at `zero`; 0 without `zero`."""
        return 0.0 if self.zero is None else -self._published_at(self.zero)

    def at(self, distance: float) -> float:
        """Return the similarity of one squared distance, in float64."""
        return self._published_at(distance) + self.shift

    def of_distance(self, distance: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the similarities of squared distances of any shape, plus their prototypes' `reference` if given."""
        if self.is_logarithmic:
            # Both are log(1 + c/(d + ε)). The shift goes into the logarithm, which saves one operation over all cells.
            scale, rise = self._scales()
            inverse = rise / (distance + self.epsilon)
            similarity = torch.log1p(inverse) if self.shift == 0.0 else torch.log(scale + inverse)
        else:
            similarity = 1.0 - 0.5 * distance if self.form == "cosine" else -distance
            if self.shift != 0.0:
                similarity = similarity + self.shift
        return similarity if reference is None else similarity + reference

    def of_product(self, product: Tensor, reference: Tensor | None = None) -> Tensor:
        """Compute `of_distance` at 2 − 2zp, the distance of unit vectors, from the `product` of z and
        `product_factor` · p.

        It takes as few operations as possible. For a logarithm, ε must be much larger than the product's rounding error
        (see `protoserve.networks.distances.refinement_radius`), because the distance can be negative by that much.
        """
        if not self.is_logarithmic:
            return self.of_distance((2.0 - product).clamp_min(0.0), reference)
        scale, rise = self._scales()
        similarity = torch.log(scale + torch.reciprocal((2.0 + self.epsilon) / rise - product))
        return similarity if reference is None else similarity + reference

    @property
    def product_factor(self) -> float:
        """The factor for one side of the product of unit vectors in `of_product`."""
        return 2.0 / self._scales()[1] if self.is_logarithmic else 2.0

    def _published_at(self, distance: float) -> float:
        if self.form == "log1p":
            return math.log1p(1.0 / (distance + self.epsilon))
        if self.form == "log-ratio":
            return math.log((distance + 1.0) / (distance + self.epsilon))
        return 1.0 - 0.5 * distance if self.form == "cosine" else -distance

    def _scales(self) -> tuple[float, float]:
        """Return s and r of the shifted logarithmic similarities, log(s + r/(d + ε))."""
        scale = math.exp(self.shift)
        return scale, scale if self.form == "log1p" else scale * (1.0 - self.epsilon)


def to_unit_length(vectors: Tensor, dimension: int) -> Tensor:
    """Scale the vectors along `dimension` to unit length.

    At unit length ‖z − p‖² = 2 − 2 cos(z, p). So everything that works with squared distances (the matrix product, the
    losses, projection) also works for the cosine, and the nearest cell is the one at the smallest angle.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dimension, keepdim=True)
    return vectors / length.clamp_min(1e-12)
