"""Pictures for training: the same decoding and resizing as in serving, and the views that augment them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps
from torch import Tensor

from protoserve.bundle import InputRule
from protoserve.dataset import Dataset
from protoserve.images import DecodedImage, FittedImage, decode, fit
from training.config import DataConfig

PLAIN, MIRRORED = 0, 1


@dataclass(frozen=True)
class Views:
    """How a training image is varied; every view of an image is a function of (seed, image, view) alone."""

    config: DataConfig
    rule: InputRule
    seed: int

    def of(self, dataset: Dataset, number: int, view: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]: view 0 is the plain picture, 1 its mirror image, higher ones are random crops."""
        picture = decode(dataset.file(number))
        if view == PLAIN:
            return fit(picture, self.rule).array
        if view == MIRRORED and self.config.mirror:
            return fit(_mirrored(picture), self.rule).array
        generator = np.random.default_rng((self.seed, view, number))
        picture = self._crop(picture, generator)
        if self.config.mirror and generator.random() < 0.5:
            picture = _mirrored(picture)
        return fit(picture, self.rule).array

    def _crop(self, picture: DecodedImage, generator: np.random.Generator) -> DecodedImage:
        side = float(np.sqrt(generator.uniform(self.config.crop_scale, 1.0)))
        stretch = float(np.exp(generator.uniform(-0.15, 0.15)))
        width = max(1, min(picture.width, round(picture.width * side * stretch)))
        height = max(1, min(picture.height, round(picture.height * side / stretch)))
        left = int(generator.integers(0, picture.width - width + 1))
        top = int(generator.integers(0, picture.height - height + 1))
        return replace(picture, picture=picture.picture.crop((left, top, left + width, top + height)))


def _mirrored(picture: DecodedImage) -> DecodedImage:
    return replace(picture, picture=ImageOps.mirror(picture.picture))


def fitted(dataset: Dataset, number: int, rule: InputRule) -> FittedImage:
    """One plain picture at model size, with its geometry."""
    return fit(decode(dataset.file(number)), rule)


def batches(
    load: Callable[[int], NDArray[np.uint8]], numbers: Sequence[int], size: int, workers: int = 2
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of pictures in the given order: their numbers and uint8 [batch, H, W, 3].

    Decoding runs ahead in threads (Pillow releases the interpreter lock), at most three batches of it.
    """
    with ThreadPoolExecutor(workers) as pool:
        order = iter(numbers)
        waiting = [(number, pool.submit(load, number)) for number in islice(order, 3 * size)]
        while waiting:
            ready, waiting = waiting[:size], waiting[size:]
            arrays = np.stack([future.result() for _, future in ready])
            waiting.extend((number, pool.submit(load, number)) for number in islice(order, size))
            yield [number for number, _ in ready], torch.from_numpy(arrays)
