"""The four terms of Li et al. 2018, eq. 5: classification, reconstruction, and the two that hold prototypes and codes
together."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from training.losses import weighted_sum
from training.sections.network import AutoencoderConfig


def autoencoder_objective(
    logits: Tensor, target: Tensor, distance: Tensor, planes: Tensor, drawn: Tensor, weights: AutoencoderConfig
) -> dict[str, Tensor]:
    """`total`, the sum of the terms by the `weights` of their names (published: 20, 1, 1, 1), and the terms, all
    scalars.

    `logits` [N, leaves] with `target` int64 [N]; squared `distance` [N, P] of codes and prototypes; pictures `planes`
    and their reconstructions `drawn` [N, planes, H, W].

    Cross-entropy is a mean over pictures. Reconstruction (R) is the squared difference summed over a picture's values,
    a mean over pictures. R1, `prototype_near_code`, is the mean over prototypes of the distance to the nearest code in
    the batch; R2, `code_near_prototype`, the mean over pictures of the distance to the nearest prototype.
    """
    difference = drawn - planes
    terms = {
        "cross_entropy": functional.cross_entropy(logits, target),
        "reconstruction": (difference * difference).flatten(1).sum(1).mean(),
        "prototype_near_code": distance.min(dim=0).values.mean(),
        "code_near_prototype": distance.min(dim=1).values.mean(),
    }
    return {"total": weighted_sum(terms, {name: getattr(weights, name) for name in terms}), **terms}
