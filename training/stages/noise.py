"""Pictures of uniform noise, which belong to no class.

Hase et al. 2019 train on them so that a network gives uniform conditionals for unfamiliar pictures. Their loss is
`training.losses.noise_loss`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.batches import slices
from training.features.cache import cached_features
from training.loop.trainer import Trainer
from training.progress import tracked

# Noise pictures for a frozen backbone. More are not needed: their features are all alike.
POOL = 64
# Keeps the random numbers of this module apart from others with the same seed.
SALT = 0x4E


def noise_pictures(count: int, height: int, width: int, seed: tuple[int, ...]) -> Tensor:
    """uint8 [count, height, width, 3], with every value drawn uniformly from 0 to 255."""
    drawn = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(drawn)


def noise_features(trainer: Trainer, *, learning: bool) -> Callable[[NDArray[np.int64]], Tensor]:
    """A function from the image numbers of a batch to the features of its noise pictures, with gradients if the
    backbone is `learning`. A batch has `data.noise_share` noise pictures per image, and at least one.

    The pictures depend only on the seed, the step and the first image number of the batch. For a frozen backbone, the
    features of a pool of pictures are computed once and cached beside those of the training images.
    """
    config, feed, step = trainer.config, trainer.feed, trainer.state.step

    def size(numbers: NDArray[np.int64]) -> int:
        return max(1, round(config.data.noise_share * len(numbers)))

    def fresh(numbers: NDArray[np.int64]) -> Tensor:
        seed = (config.seed, SALT, step, int(numbers[0]))
        pictures = noise_pictures(size(numbers), config.image.height, config.image.width, seed)
        with torch.set_grad_enabled(learning):
            return trainer.network.features(pictures.to(trainer.device))

    if not feed.frozen:
        return fresh
    with tracked(trainer.console, "features of noise", POOL) as advance:
        pictures = noise_pictures(POOL, config.image.height, config.image.width, (config.seed, SALT))
        pool = cached_features(
            feed.directory,
            f"noise-{feed.version}",
            trainer.network.features,
            ((part.tolist(), pictures[part]) for part in slices(np.arange(POOL), config.batch)),
            0,
            images=POOL,
            device=trainer.device,
            advance=advance,
        )

    def pooled(numbers: NDArray[np.int64]) -> Tensor:
        generator = np.random.default_rng((config.seed, SALT, step, int(numbers[0])))
        return pool.batch(generator.integers(0, POOL, size(numbers))).to(trainer.device)

    return pooled
