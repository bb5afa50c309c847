"""The networks: a backbone, followed by the prototype head or by a plain linear classifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from protoserve.graph_signature import Explanation
from protoserve.images.geometry import Cells
from protoserve.networks.backbones import Backbone
from protoserve.networks.fused_head import explain
from protoserve.networks.head import HeadOutput, PrototypeHead
from protoserve.networks.similarity import to_unit_length
from protoserve.networks.statistics import IMAGENET, Statistics
from protoserve.taxonomy import Taxonomy

Latent = Literal["sigmoid", "sphere"]


class Normalise(nn.Module):
    """Normalises uint8 [N, H, W, 3] to float32 [N, 3, H, W] with the statistics that a backbone's weights expect."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, statistics: Statistics = IMAGENET) -> None:
        super().__init__()
        mean, deviation = (torch.tensor(part).reshape(3, 1, 1) * 255.0 for part in statistics)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.deviation


class AddOn(nn.Module):
    """Adds to an affine map of every cell a second branch through `hidden` rectified units.

    The second branch starts at 0. Training therefore starts from the distances of the linear map and learns where to
    depart from them. Chen et al. 2019 and Hase et al. 2019 put a rectified layer between two 1×1 convolutions instead.
    """

    def __init__(self, width: int, dimensions: int, hidden: int) -> None:
        super().__init__()
        self.direct = nn.Conv2d(width, dimensions, 1)
        self.hidden = nn.Conv2d(width, hidden, 1)
        self.bend = nn.Conv2d(hidden, dimensions, 1)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        for zero in (self.hidden.bias, self.bend.weight, self.bend.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, features: Tensor) -> Tensor:
        mapped: Tensor = self.direct(features) + self.bend(self.hidden(features).relu())
        return mapped


class PrototypeNetwork(nn.Module):
    """Backbone → reduction → add-on layers → prototype head.

    `reduction` is a fixed 1×1 convolution (a principal component analysis of the training cells) or None. The add-on
    layers end in a sigmoid, so latent values are in (0, 1) and squared distances in [0, D]. For a head of
    `unit_length` they are linear, and each cell is scaled to unit length: squared distances are in [0, 4], and the
    strength of a cell's activation does not count. For the similarity `cosine`, a hyperbolic tangent precedes the
    scaling.

    `smoothing` (odd, in cells) replaces every cell with the mean of the smoothing × smoothing cells around it that lie
    on the map; the map becomes less local and more stable. `hidden` is the width of the add-on layers' rectified layer;
    without it the add-on is one convolution.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: PrototypeHead,
        reduced: int | None,
        dropout: float = 0.0,
        smoothing: int = 1,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.smoothing: nn.AvgPool2d | None = None
        if smoothing > 1:
            self.smoothing = nn.AvgPool2d(smoothing, 1, smoothing // 2, count_include_pad=False)
        self.normalise = Normalise(backbone.statistics)
        self.backbone = backbone
        self.reduction: nn.Conv2d | None = nn.Conv2d(backbone.channels, reduced, 1) if reduced else None
        width, dimensions = reduced or backbone.channels, head.prototypes.shape[1]
        # Only the cosine squashes cells before they are scaled to unit length.
        squash = nn.Tanh() if head.similarity.needs_unit_length else nn.Identity() if head.unit_length else nn.Sigmoid()
        mapping = AddOn(width, dimensions, hidden) if hidden else nn.Conv2d(width, dimensions, 1)
        self.add_on = nn.Sequential(nn.Dropout(dropout), mapping, squash)
        self.head = head

    def cells(self, rows: int, columns: int) -> Cells:
        """Return the cells of the network's feature map, which has `rows` × `columns` of them."""
        field = self.backbone.field
        if field is not None:
            return Cells(rows, columns, tile=field.size, step=field.step, start=field.start)
        kernel = 1 if self.smoothing is None else self.smoothing.kernel_size
        return Cells(rows, columns, kernel if isinstance(kernel, int) else kernel[0])

    def features(self, images: Tensor) -> Tensor:
        """Compute the add-on layers' input [N, width, rows, columns] from uint8 images [N, H, W, 3]."""
        return self.from_maps(self.backbone(self.normalise(images)))

    def from_maps(self, maps: Tensor) -> Tensor:
        """Compute `features` from the backbone's feature maps [N, channels, rows, columns]."""
        reduced: Tensor = maps if self.reduction is None else self.reduction(maps)
        return reduced if self.smoothing is None else self.smoothing(reduced)

    def latent(self, features: Tensor) -> Tensor:
        """Compute the map [N, D, rows, columns] that prototypes are compared with: values in (0, 1), or cells of unit
        length for a head of `unit_length`."""
        latent: Tensor = self.add_on(features)
        return to_unit_length(latent, 1) if self.head.unit_length else latent

    def latent_of_cells(self, cells: Tensor) -> Tensor:
        """Compute the latent vectors [cells, D] of single cells' features [cells, width], without dropout."""
        vectors = cells[:, :, None, None]
        for layer in self.add_on:
            vectors = vectors if isinstance(layer, nn.Dropout) else layer(vectors)
        return (to_unit_length(vectors, 1) if self.head.unit_length else vectors)[:, :, 0, 0]

    def forward(self, images: Tensor) -> HeadOutput:
        output: HeadOutput = self.head(self.latent(self.features(images)))
        return output

    def explain(self, images: Tensor, top_k: int) -> Explanation[Tensor, Tensor]:
        """Compute the exported graph's outputs for uint8 images [N, H, W, 3]."""
        return explain(self.head, self.latent(self.features(images)), top_k)


class LinearNetwork(nn.Module):
    """The baseline for prototypes: the same backbone, pooled, and a plain softmax classifier over the leaves.

    `temperature` [1] divides the logits. It is 1 until the run is calibrated.
    """

    leaves_below: Tensor
    temperature: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, dropout: float = 0.0) -> None:
        super().__init__()
        self.taxonomy = taxonomy
        self.normalise = Normalise(backbone.statistics)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(backbone.channels, len(taxonomy.leaves))
        self.register_buffer("leaves_below", torch.from_numpy(taxonomy.leaves_below).float(), persistent=False)
        self.register_buffer("temperature", torch.ones(1))

    def features(self, images: Tensor) -> Tensor:
        """Compute pooled features [N, channels] from uint8 images [N, H, W, 3]."""
        return self.from_maps(self.backbone(self.normalise(images)))

    def from_maps(self, maps: Tensor) -> Tensor:
        """Pool the backbone's feature maps [N, channels, rows, columns] into features [N, channels]."""
        return maps.mean((2, 3))

    def leaf_logits(self, features: Tensor) -> Tensor:
        """Compute the leaves' logits [N, leaves] from pooled features [N, channels]."""
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    def log_probability(self, features: Tensor) -> Tensor:
        """Compute all nodes' log-probabilities [N, V] from pooled features [N, channels]."""
        return self.node_log_probability(self.leaf_logits(features))

    def node_log_probability(self, leaf_logits: Tensor) -> Tensor:
        """Compute all nodes' log-probabilities [N, V] from `leaf_logits` [N, leaves]; an inner node's probability is
        the sum of its leaves'."""
        leaves = torch.softmax(leaf_logits / self.temperature, dim=1)
        return torch.matmul(leaves, self.leaves_below.t()).clamp_min(1e-37).log()

    def forward(self, images: Tensor) -> Tensor:
        return self.log_probability(self.features(images))
