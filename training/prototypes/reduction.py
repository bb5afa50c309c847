"""Principal component analysis of the features of training cells, which initialises the reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from protoserve.networks.network import AddOn, PrototypeNetwork
from training.features.cache import Advance

# Initial squared distance between two random cells.
START_DISTANCE = 2.5


class CellMoments:
    """Accumulates sums from which the mean and covariance of cells follow, in constant memory."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add the cells of `features` [batch, channels, rows, columns]."""
        cells = features.detach().cpu().movedim(1, -1).flatten(0, 2)
        self.count += len(cells)
        self.sum += cells.sum(0, dtype=torch.float64)
        self.products += (cells.t() @ cells).double()

    def principal_components(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The weight [width, channels] and bias [width] of the affine map to the leading components, and their
        variances [width]. A common factor scales the components to a mean variance of 1."""
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        leading = vectors[:, -width:].flip(1)
        # The sign of an eigenvector is arbitrary. Fix it, so that all machines train the same network.
        signs = torch.sign(leading.gather(0, leading.abs().argmax(0, keepdim=True)))
        mean_variance = values[-width:].mean().clamp_min(1e-12)
        weight = (leading * signs).t() / mean_variance.sqrt()
        return weight.float(), (-weight @ mean).float(), (values[-width:].flip(0) / mean_variance).float()


def set_affine(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Set a 1×1 convolution to this affine map."""
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
    maps: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Set the network's reduction to the principal components of the cells of all `pictures`, and the add-on
    convolution to the leading ones.

    `pictures` yields batches of (numbers, uint8 [batch, H, W, 3]). `maps` computes the backbone's feature maps of a
    batch (None: the network itself does). Distances between cells then start as distances
    between their features, scaled so that two random cells are about `START_DISTANCE` apart, where the similarity has a
    useful gradient.
    """
    if network.reduction is None:
        return
    moments = CellMoments(network.backbone.channels)
    for numbers, batch in pictures:
        images = batch.to(device)
        moments.add(network.backbone(network.normalise(images)) if maps is None else maps(images))
        advance(len(numbers))
    weight, bias, variances = moments.principal_components(network.reduction.out_channels)
    set_affine(network.reduction, weight, bias)
    mapping = network.add_on[1]
    convolution = mapping.direct if isinstance(mapping, AddOn) else mapping
    assert isinstance(convolution, nn.Conv2d)
    kept = variances[: convolution.out_channels].sum().clamp_min(1e-12)
    # The expected squared distance of two independent cells is twice the variance; the slope of the sigmoid at 0 is
    # 1/4.
    scale = float((START_DISTANCE * 16 / (2 * kept)).sqrt())
    set_affine(
        convolution,
        scale * torch.eye(convolution.out_channels, convolution.in_channels),
        torch.zeros(convolution.out_channels),
    )
    if isinstance(mapping, AddOn):
        # Give the ReLU layer its input at the same scale.
        with torch.no_grad():
            mapping.hidden.weight.mul_(scale)
