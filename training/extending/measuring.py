"""The features of old and new pictures for an extension, and the similarities that its last layers are fitted to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.networks.head import PrototypeHead
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from training.config import Config
from training.data.batches import slices
from training.data.pictures import Views
from training.features.cache import FeatureCache
from training.features.feed import Feed
from training.features.precision import Learning
from training.features.shared_cache import SharedCache


@dataclass
class Stopwatch:
    """Seconds spent, in all and on `features`: decoding pictures and passing them through the backbone."""

    began: float = field(default_factory=time.perf_counter)
    features: float = 0.0

    @contextmanager
    def on_features(self) -> Iterator[None]:
        """Count the block as time for features."""
        start = time.perf_counter()
        yield
        self.features += time.perf_counter() - start

    def beside_features(self) -> float:
        """Return the seconds since the start that were not spent on features."""
        return time.perf_counter() - self.began - self.features


def frozen_feed(
    fit: Dataset,
    selection: Dataset,
    network: PrototypeNetwork | LinearNetwork,
    config: Config,
    directory: Path,
    *,
    device: torch.device,
    console: Console,
    cache: SharedCache | None = None,
) -> Feed:
    """Feed the pictures to a backbone that no longer learns. Finds the features that training left in `cache`."""
    feed = Feed(
        fit,
        selection,
        views=Views(config.image, config.data_seed, config.data.zoom, config.data.mirror, config.data.views),
        learning=Learning(None, False, config.precision, config.compile, 0, config.features),
        seed=config.seed,
        batch=config.batch,
        workers=config.data.workers,
        directory=directory,
        device=device,
        console=console,
        shared=cache,
    )
    feed.use(network)
    return feed


def chained(first: FeatureCache, rows: NDArray[np.int64], second: FeatureCache | None) -> FeatureCache:
    """The features `rows` of the first cache, followed by all of the second."""
    whole = len(rows) == len(first)
    arrays = first.arrays if whole else (first.batch(rows).numpy(),)
    return FeatureCache((*arrays, *(() if second is None else second.arrays)))


@torch.inference_mode()
def similarities(
    network: PrototypeNetwork, head: PrototypeHead, features: FeatureCache, batch: int, device: torch.device
) -> NDArray[np.float32]:
    """float32 [images, P]: the similarities of all images to the prototypes of `head`, which may be another than the
    network's."""
    rows = []
    for numbers in slices(np.arange(len(features)), batch):
        distance, _ = head.nearest_cells(network.latent(features.batch(numbers).to(device)))
        rows.append(head.similarity.of_distance(distance, head.reference).float().cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, len(head.prototypes)), dtype=np.float32)


@torch.inference_mode()
def log_probability(head: PrototypeHead, similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [images, V]: the log-probabilities of all nodes from similarities [images, P]."""
    rows = torch.from_numpy(similarity).to(head.weight)
    logits = head.grouping.logits(rows, head.grouping.weights(head.effective_weight()))
    answer: Tensor = head.node_log_probability(head.grouping.group_logits(logits))[1]
    return np.asarray(answer.cpu().numpy(), dtype=np.float32)


def without_own_source(
    similarity: NDArray[np.float32],
    leaves: NDArray[np.int64],
    source: NDArray[np.int64],
    prototypes: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Replace each image's similarity to the `prototypes` that were cut from it by the mean over the other images of
    its leaf.

    A prototype fits the picture that it was cut from better than any new picture. `similarity` float32 [images, P],
    `leaves` int64 [images], and `source` int64 [P], the image of each prototype. Where the leaf has no other image, the
    similarity stays.
    """
    result = similarity.copy()
    for prototype in prototypes.tolist():
        image = int(source[prototype])
        others = np.flatnonzero(leaves == leaves[image])
        others = others[others != image]
        if len(others):
            result[image, prototype] = similarity[others, prototype].mean()
    return result
