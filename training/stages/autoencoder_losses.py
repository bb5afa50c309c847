"""The four terms of Li et al. 2018, eq. 5: classification, reconstruction, and the two that hold prototypes and codes
together."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional


class AutoencoderLosses(NamedTuple):
    """Scalars; see `autoencoder_losses`."""

    total: Tensor
    cross_entropy: Tensor
    reconstruction: Tensor
    prototype_near_code: Tensor
    code_near_prototype: Tensor


class Weights(NamedTuple):
    """What each term counts; published: 20, 1, 1, 1."""

    cross_entropy: float = 20.0
    reconstruction: float = 1.0
    prototype_near_code: float = 1.0
    code_near_prototype: float = 1.0


def autoencoder_losses(
    logits: Tensor, target: Tensor, distance: Tensor, planes: Tensor, drawn: Tensor, weights: Weights
) -> AutoencoderLosses:
    """The weighted sum and its terms.

    `logits` [N, leaves] with `target` int64 [N]; squared `distance` [N, P] of codes and prototypes; pictures `planes`
    and their reconstructions `drawn` [N, planes, H, W].

    Cross-entropy is a mean over pictures. Reconstruction (R) is the squared difference summed over a picture's values,
    a mean over pictures. R1, `prototype_near_code`, is the mean over prototypes of the distance to the nearest code in
    the batch; R2, `code_near_prototype`, the mean over pictures of the distance to the nearest prototype.
    """
    cross_entropy = functional.cross_entropy(logits, target)
    difference = drawn - planes
    reconstruction = (difference * difference).flatten(1).sum(1).mean()
    prototype_near_code = distance.min(dim=0).values.mean()
    code_near_prototype = distance.min(dim=1).values.mean()
    total = (
        weights.cross_entropy * cross_entropy
        + weights.reconstruction * reconstruction
        + weights.prototype_near_code * prototype_near_code
        + weights.code_near_prototype * code_near_prototype
    )
    return AutoencoderLosses(total, cross_entropy, reconstruction, prototype_near_code, code_near_prototype)
