"""The reduction of features to their principal components, over the cells of training pictures."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from protoserve.networks.network import AddOn, PrototypeNetwork
from training.features.cache import Advance

START_DISTANCE = 2.5


class CellMoments:
    """Sums over cells from which mean and covariance follow; memory does not grow with the data."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """`features` [batch, channels, rows, columns]"""
        cells = features.detach().cpu().movedim(1, -1).flatten(0, 2)
        self.count += len(cells)
        self.sum += cells.sum(0, dtype=torch.float64)
        self.products += (cells.t() @ cells).double()

    def principal_components(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """weight [width, channels] and bias [width] of the affine map to the leading components, and their variances
        [width]. All are scaled together, so that their relative sizes stay, to a mean variance of 1."""
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        leading = vectors[:, -width:].flip(1)
        # Eigenvectors come with an arbitrary sign; fix it, or two machines would train different networks.
        signs = torch.sign(leading.gather(0, leading.abs().argmax(0, keepdim=True)))
        mean_variance = values[-width:].mean().clamp_min(1e-12)
        weight = (leading * signs).t() / mean_variance.sqrt()
        return weight.float(), (-weight @ mean).float(), (values[-width:].flip(0) / mean_variance).float()


def set_affine(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Make a 1×1 convolution that affine map."""
    assert convolution.bias is not None
    with torch.no_grad():
        convolution.weight.copy_(weight[:, :, None, None])
        convolution.bias.copy_(bias)


@torch.inference_mode()
def fit_reduction(
    network: PrototypeNetwork,
    pictures: Iterable[tuple[list[int], Tensor]],
    device: torch.device,
    advance: Advance,
) -> None:
    """Set the network's reduction to the principal components of the cells of all `pictures` (batches of numbers and
    uint8 [batch, H, W, 3]), and start the add-on convolution as the leading ones.

    Distances between cells then start as distances between their features, at a size where the similarity still
    has a slope: two random cells stand about `START_DISTANCE` apart.
    """
    if network.reduction is None:
        return
    moments = CellMoments(network.backbone.channels)
    for numbers, batch in pictures:
        moments.add(network.backbone(network.normalise(batch.to(device))))
        advance(len(numbers))
    weight, bias, variances = moments.principal_components(network.reduction.out_channels)
    set_affine(network.reduction, weight, bias)
    mapping = network.add_on[1]
    convolution = mapping.direct if isinstance(mapping, AddOn) else mapping
    assert isinstance(convolution, nn.Conv2d)
    kept = variances[: convolution.out_channels].sum().clamp_min(1e-12)
    # Two independent cells differ by twice the variance; the sigmoid's slope at 0 is 1/4.
    scale = float((START_DISTANCE * 16 / (2 * kept)).sqrt())
    set_affine(
        convolution,
        scale * torch.eye(convolution.out_channels, convolution.in_channels),
        torch.zeros(convolution.out_channels),
    )
    if isinstance(mapping, AddOn):
        # The rectified layer sees its input at the same scale.
        with torch.no_grad():
            mapping.hidden.weight.mul_(scale)
