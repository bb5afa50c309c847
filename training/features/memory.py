"""All pictures of a data set in memory, for autoencoders, which learn from pictures instead of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from training.data.pictures import PLAIN, fitted
from training.features.feed import Part
from training.progress import tracked


class PicturesInMemory:
    """All fit and selection pictures, uint8 [images, H, W, 3] on the run's device.

    `batch_features` and `features` have the interface of `Feed`, so that stages work with either.
    """

    def __init__(
        self, fit: Dataset, selection: Dataset, rule: InputRule, device: torch.device, console: Console
    ) -> None:
        self.fit = in_memory(fit, rule, console).to(device)
        self.selection = in_memory(selection, rule, console).to(device)

    def use(self, network: PrototypeAutoencoder) -> None:
        """Compute features by this network from now on."""
        self.network = network

    def batch_features(self, part: Part, numbers: NDArray[np.int64], view: int = PLAIN) -> Tensor:
        """`network.features` of one batch of pictures, without deformation."""
        return next(self.features(part, [numbers], view))

    @torch.inference_mode()
    def features(self, part: Part, batches: Iterable[NDArray[np.int64]], view: int = PLAIN) -> Iterator[Tensor]:
        """`network.features` of batches of pictures, without deformation; the plain view is the only one."""
        assert view == PLAIN
        pictures = self.fit if part == "fit" else self.selection
        for numbers in batches:
            yield self.network.features(pictures[torch.from_numpy(numbers).to(pictures.device)])


def in_memory(dataset: Dataset, rule: InputRule, console: Console) -> Tensor:
    """All pictures of a data set at model size, uint8 [images, H, W, 3]; channels of grey pictures may share memory."""
    pixels = dataset.pixels
    if pixels is not None and pixels.shape[1:] == (rule.height, rule.width):
        return torch.from_numpy(pixels)[..., None].expand(-1, -1, -1, 3)
    array = np.empty((len(dataset), rule.height, rule.width, 3), dtype=np.uint8)

    def read(number: int) -> None:
        array[number] = fitted(dataset, number, rule).array

    with tracked(console, "reading pictures", len(dataset)) as advance, ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(len(dataset))):
            advance(1)
    return torch.from_numpy(array)
