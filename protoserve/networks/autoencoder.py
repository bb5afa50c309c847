"""The prototype autoencoder (Li, Liu, Chen, Rudin 2018): whole pictures compared with prototypes in a latent code.

An encoder maps a picture to one code. The code's squared distances to the prototypes go into a bias-free linear layer
and a softmax over the leaves. A decoder draws a picture from any code, and so from every prototype.

The head is that of the other networks, over a feature map of one cell. Similarity = reference − distance. Training uses
references of 0: the logits are then the published sums of distances, with the sign of every weight reversed.
`PrototypeHead.recentre_distances` rewrites these sums in a form that people can read, and changes no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.graph_signature import Explanation
from protoserve.images.geometry import Cells
from protoserve.networks.fused_head import explain
from protoserve.networks.head import HeadOutput, PrototypeHead

Size = tuple[int, int]


def map_sizes(height: int, width: int, layers: int) -> list[Size]:
    """Return (rows, columns) of the picture and of the maps after each of the `layers` convolutions.

    Each convolution has the stride 2 and rounds up.

    >>> map_sizes(28, 28, 4)
    [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]
    """
    sizes = [(height, width)]
    for _ in range(layers):
        rows, columns = sizes[-1]
        sizes.append(((rows + 1) // 2, (columns + 1) // 2))
    return sizes


def code_size(channels: Sequence[int], height: int, width: int) -> int:
    """Return the length of a picture's code: the number of the last layer's maps times their cells.

    >>> code_size([32, 32, 32, 10], 28, 28)
    40
    """
    rows, columns = map_sizes(height, width, len(channels))[-1]
    return channels[-1] * rows * columns


class Planes(nn.Module):
    """Converts uint8 images [N, H, W, 3] to float32 planes [N, planes, H, W] in [0, 1]: the three colours, or their
    mean as one grey plane."""

    def __init__(self, grey: bool) -> None:
        super().__init__()
        self.grey = grey

    def forward(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2).float() / 255.0
        return planes.mean(1, keepdim=True) if self.grey else planes


class Decoded(NamedTuple):
    """A batch as training reads it: the head's `output`, and the `planes` and their reconstruction `drawn`
    [N, planes, H, W] in [0, 1]."""

    output: HeadOutput
    planes: Tensor
    drawn: Tensor


class PrototypeAutoencoder(nn.Module):
    """An encoder, a prototype head over its code as one cell, and a decoder.

    `channels` are the numbers of maps of the encoder's 3×3 convolutions; each has the stride 2 and is followed by a
    ReLU. The decoder mirrors it with transposed convolutions and ends in a sigmoid. Published: 32, 32, 32, 10 maps on
    28×28 pixels, so codes of length 40.

    Raises InputError if the head's prototypes are not as long as the code.
    """

    def __init__(
        self, channels: Sequence[int], height: int, width: int, head: PrototypeHead, *, grey: bool = True
    ) -> None:
        super().__init__()
        length = code_size(channels, height, width)
        if head.prototypes.shape[1] != length:
            raise InputError(
                f"{height} × {width} pixels through maps of {list(channels)} give a code of {length} numbers, but the "
                f"prototypes have {head.prototypes.shape[1]}; make the head with {length} dimensions"
            )
        widths = [1 if grey else 3, *channels]
        self.sizes = map_sizes(height, width, len(channels))
        self.planes = Planes(grey)
        self.encoder = nn.Sequential()
        for before, after in pairwise(widths):
            self.encoder.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.encoder.append(nn.ReLU())
        self.decoder = nn.Sequential()
        for layer in reversed(range(len(channels))):
            (rows, columns), (rows_above, columns_above) = self.sizes[layer + 1], self.sizes[layer]
            # Without this padding a transposed convolution gives 2n − 1 cells, where the mirrored layer may have 2n.
            rest = (rows_above - 2 * rows + 1, columns_above - 2 * columns + 1)
            self.decoder.append(
                nn.ConvTranspose2d(widths[layer + 1], widths[layer], 3, stride=2, padding=1, output_padding=rest)
            )
            self.decoder.append(nn.ReLU() if layer else nn.Sigmoid())
        self.head = head

    def cells(self, rows: int, columns: int) -> Cells:
        """Return the cells of the head's map, which has `rows` × `columns` of them: one, the whole picture."""
        return Cells(rows, columns)

    def features(self, images: Tensor) -> Tensor:
        """Compute the encoder's last maps [N, channels, rows, columns] from uint8 images [N, H, W, 3]."""
        maps: Tensor = self.encoder(self.planes(images))
        return maps

    def latent(self, features: Tensor) -> Tensor:
        """Flatten the encoder's last maps into codes [N, D, 1, 1]: to the head, one cell that is the whole picture."""
        return features.flatten(1)[:, :, None, None]

    def forward(self, images: Tensor) -> HeadOutput:
        output: HeadOutput = self.head(self.latent(self.features(images)))
        return output

    def explain(self, images: Tensor, top_k: int) -> Explanation[Tensor, Tensor]:
        """Compute the exported graph's outputs for uint8 images [N, H, W, 3]."""
        return explain(self.head, self.latent(self.features(images)), top_k)

    def decode(self, codes: Tensor) -> Tensor:
        """Draw the pictures [N, planes, H, W] in [0, 1] of codes [N, D]."""
        rows, columns = self.sizes[-1]
        pictures: Tensor = self.decoder(codes.reshape(codes.shape[0], -1, rows, columns))
        return pictures

    def reconstruct(self, planes: Tensor) -> Decoded:
        """Classify and reconstruct pictures given as planes [N, planes, H, W] in [0, 1]."""
        code = self.encoder(planes).flatten(1)
        return Decoded(self.head(code[:, :, None, None]), planes, self.decode(code))
