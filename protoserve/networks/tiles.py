"""Pictures cut into square tiles, so that a cell of the feature map depends on the pixels of its tile alone.

A backbone's receptive field is usually larger than its cell, and squeeze-and-excitation looks at the whole picture. A
tile that passes through the backbone as a picture of its own can't see anything else. PixPNet (Carmichael et al., WACV
2024) and BagNet (Brendel and Bethge, ICLR 2019) limit the receptive field by the choice of layers; tiles work with any.

Shapes: N pictures, R rows and K columns of tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from protoserve.images.geometry import tile_grid


@dataclass(frozen=True)
class Tiles:
    """Square tiles of `tile` pixels, one every `step` pixels; they overlap if `step` is smaller."""

    tile: int
    step: int

    def cut(self, pictures: Tensor) -> Tensor:
        """Cut pictures [N, C, H, W] into tiles [N, R, K, C, tile, tile].

        Raises InputError if the tiles do not cover the pictures exactly.
        """
        # Sizes are tensors while TorchScript traces.
        rows, columns = tile_grid(int(pictures.shape[2]), int(pictures.shape[3]), self.tile, self.step)
        bands = [pictures.narrow(2, row * self.step, self.tile) for row in range(rows)]
        stacked = torch.stack(bands, dim=1)  # [N, R, C, tile, W]
        return torch.stack([stacked.narrow(4, column * self.step, self.tile) for column in range(columns)], dim=2)


def on_tiles(module: Callable[[Tensor], Tensor], tiles: Tensor) -> Tensor:
    """Apply a module for batches to every tile of [N, R, K, …] alone; returns [N, R, K, …]."""
    outputs: Tensor = module(tiles.flatten(0, 2)).unflatten(0, (-1, *tiles.shape[1:3]))
    return outputs


def mean_cells(maps: Tensor) -> Tensor:
    """Make one cell of each tile's feature map [N, R, K, channels, rows, columns], its mean; returns
    [N, channels, R, K]."""
    return maps.mean((4, 5)).permute(0, 3, 1, 2)
