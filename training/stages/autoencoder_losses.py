"""The four terms of the loss of Li et al. 2018, eq. 5: classification, reconstruction, R1 and R2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from training.losses import weighted_sum
from training.sections.network import AutoencoderConfig


def autoencoder_objective(
    logits: Tensor, target: Tensor, distance: Tensor, planes: Tensor, drawn: Tensor, weights: AutoencoderConfig
) -> dict[str, Tensor]:
    """The weighted sum of the terms as `total`, followed by the terms, all scalars; published weights: 20, 1, 1, 1.

    `logits` [N, leaves], `target` int64 [N]; `distance` [N, P] is the squared distance between codes and prototypes;
    `planes` [N, planes, H, W] are the pictures and `drawn` their reconstructions.

    `cross_entropy` is a mean over pictures. `reconstruction` (R) is the squared difference, summed over the values of a
    picture and averaged over pictures. `prototype_near_code` (R1) is the mean over prototypes of the distance to the
    nearest code in the batch. `code_near_prototype` (R2) is the mean over pictures of the distance from their code to
    the nearest prototype.
    """
    difference = drawn - planes
    terms = {
        "cross_entropy": functional.cross_entropy(logits, target),
        "reconstruction": (difference * difference).flatten(1).sum(1).mean(),
        "prototype_near_code": distance.min(dim=0).values.mean(),
        "code_near_prototype": distance.min(dim=1).values.mean(),
    }
    return {"total": weighted_sum(terms, {name: getattr(weights, name) for name in terms}), **terms}
