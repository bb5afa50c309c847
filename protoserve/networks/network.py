"""The networks: a backbone, and on its features either the prototype head or a plain linear classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protoserve.networks.backbones import MEAN, STANDARD_DEVIATION, Backbone
from protoserve.networks.head import Explanation, HeadOutput, PrototypeHead
from protoserve.taxonomy import Taxonomy


class Normalise(nn.Module):
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] with the statistics of torchvision's weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1) * 255.0, persistent=False)
        self.register_buffer("deviation", torch.tensor(STANDARD_DEVIATION).reshape(3, 1, 1) * 255.0, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.deviation


class PrototypeNetwork(nn.Module):
    """Backbone → reduction → add-on layers → prototype head.

    `reduction` is a fixed 1×1 convolution (a principal component analysis of the training cells) or nothing;
    the add-on layers end in a sigmoid, so latent values lie in (0, 1) and distances in [0, D].
    """

    def __init__(self, backbone: Backbone, head: PrototypeHead, reduced: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.backbone = backbone
        self.reduction: nn.Conv2d | None = nn.Conv2d(backbone.channels, reduced, 1) if reduced else None
        width, dimensions = reduced or backbone.channels, head.prototypes.shape[1]
        self.add_on = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(width, dimensions, 1), nn.Sigmoid())
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """What a frozen backbone gives the add-on layers: uint8 [N, H, W, 3] → [N, width, rows, columns]."""
        maps: Tensor = self.backbone(self.normalise(images))
        return maps if self.reduction is None else self.reduction(maps)

    def latent(self, features: Tensor) -> Tensor:
        """The feature map that prototypes are compared with: [N, D, rows, columns], values in (0, 1)."""
        latent: Tensor = self.add_on(features)
        return latent

    def forward(self, images: Tensor) -> HeadOutput:
        output: HeadOutput = self.head(self.latent(self.features(images)))
        return output

    def explain(self, images: Tensor, top_k: int) -> Explanation:
        """The exported graph's outputs for uint8 images [N, H, W, 3]."""
        return self.head.explain(self.latent(self.features(images)), top_k)


class LinearNetwork(nn.Module):
    """The plain softmax classifier over leaves that prototypes are measured against: the same backbone, pooled."""

    leaves_below: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, dropout: float = 0.0) -> None:
        super().__init__()
        self.taxonomy = taxonomy
        self.normalise = Normalise()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(backbone.channels, len(taxonomy.leaves))
        self.register_buffer("leaves_below", torch.from_numpy(taxonomy.leaves_below).float(), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [N, channels] of uint8 images [N, H, W, 3]."""
        maps: Tensor = self.backbone(self.normalise(images))
        return maps.mean((2, 3))

    def leaf_logits(self, features: Tensor) -> Tensor:
        """[N, leaves]"""
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    def log_probability(self, features: Tensor) -> Tensor:
        """Log-probabilities of all nodes [N, V]; inner nodes by summation."""
        leaves = torch.softmax(self.leaf_logits(features), dim=1)
        return torch.matmul(leaves, self.leaves_below.t()).clamp_min(1e-37).log()

    def forward(self, images: Tensor) -> Tensor:
        return self.log_probability(self.features(images))
