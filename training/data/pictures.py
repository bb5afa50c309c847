"""Pictures for training: decoded and resized as in serving, and augmented in views."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from protoserve.cores import usable_cores
from protoserve.data.dataset import Dataset
from protoserve.images.decoded import DecodedImage
from protoserve.images.fitting import FittedImage, fit
from protoserve.images.geometry import InputRule

PLAIN, MIRRORED = 0, 1


@dataclass(frozen=True)
class Views:
    """How training images are augmented. A view of an image depends only on the seed, the image and the view's number.

    `zoom` holds the smallest and largest side of a random crop, relative to the side of the plain view. With `mirror`,
    pictures are also mirrored. `count` views of every image are cached.
    """

    rule: InputRule
    seed: int
    zoom: tuple[float, float] = (0.75, 1.25)
    mirror: bool = True
    count: int = 2

    def of(self, dataset: Dataset, number: int, view: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]: view 0 is the plain picture, view 1 its mirror image if `mirror` holds; all others are
        random crops."""
        picture = dataset.picture(number)
        if view == PLAIN:
            return fit(picture, self.rule).array
        if view == MIRRORED and self.mirror:
            return fit(_mirrored(picture), self.rule).array
        generator = np.random.default_rng((self.seed, view, number))
        picture = self._crop(picture, generator)
        if self.mirror and generator.random() < 0.5:
            picture = _mirrored(picture)
        return fit(picture, self.rule.model_copy(update={"share": 1.0})).array

    def _crop(self, picture: DecodedImage, generator: np.random.Generator) -> DecodedImage:
        side = self.rule.share * float(generator.uniform(*self.zoom))
        stretch = float(np.exp(generator.uniform(-0.15, 0.15)))
        whole_width, whole_height = picture.decoded_size
        width = max(1, min(whole_width, round(whole_width * side * stretch)))
        height = max(1, min(whole_height, round(whole_height * side / stretch)))
        left = int(generator.integers(0, whole_width - width + 1))
        top = int(generator.integers(0, whole_height - height + 1))
        return _changed(picture, picture.rows(0, whole_height).crop((left, top, left + width, top + height)))


def _mirrored(picture: DecodedImage) -> DecodedImage:
    return _changed(picture, ImageOps.mirror(picture.rows(0, picture.decoded_size[1])))


def _changed(picture: DecodedImage, upright: Image.Image) -> DecodedImage:
    """A picture with other pixels, upright RGB, in the same colours."""
    return DecodedImage(upright, profile=picture.profile)


def fitted(dataset: Dataset, number: int, rule: InputRule) -> FittedImage:
    """One plain picture at model size, with its geometry."""
    return fit(dataset.picture(number), rule)


def batches(
    load: Callable[[int], NDArray[np.uint8]], numbers: Sequence[int], size: int, workers: int | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of pictures in the given order, as (numbers, uint8 [batch, H, W, 3])."""
    parts = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
    return loaded(load, parts, workers or usable_cores())


def loaded(
    load: Callable[[int], NDArray[np.uint8]], parts: Iterable[Sequence[int]], workers: int, *, pinned: bool = False
) -> Generator[tuple[list[int], Tensor], None, None]:
    """Load parts of a data set, as (numbers, pictures uint8 [part, H, W, 3]); `pinned` for page-locked memory.

    `workers` threads decode ahead of the consumer, by at least two parts and two pictures per thread; Pillow releases
    the interpreter lock. One more thread stacks parts, so that the next part is ready while the consumer trains on one.
    """

    def together(futures: list[Future[NDArray[np.uint8]]]) -> Tensor:
        stacked = torch.from_numpy(np.stack([future.result() for future in futures]))
        return stacked.pin_memory() if pinned else stacked

    order = iter(parts)
    waiting: deque[tuple[list[int], Future[Tensor]]] = deque()
    with ThreadPoolExecutor(workers) as decoding, ThreadPoolExecutor(1) as stacking:
        try:
            while True:
                while len(waiting) < 3 or sum(len(numbers) for numbers, _ in waiting) < 2 * workers:
                    part = next(order, None)
                    if part is None:
                        break
                    futures = [decoding.submit(load, number) for number in part]
                    waiting.append((list(part), stacking.submit(together, futures)))
                if not waiting:
                    return
                numbers, pictures = waiting.popleft()
                yield numbers, pictures.result()
        finally:
            # A consumer that stops early does not wait for the remaining pictures.
            decoding.shutdown(wait=False, cancel_futures=True)
            stacking.shutdown(wait=False, cancel_futures=True)
