"""Features of a frozen backbone, computed once: a cache on disk, and the principal components that reduce it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from protoserve.dataset import Dataset
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from protoserve.run import write_text_whole
from training.config import Config
from training.pictures import PLAIN, Views, batches
from training.progress import tracked

Advance = Callable[[int], None]
START_DISTANCE = 2.5


@dataclass(frozen=True)
class FeatureCache:
    """float32 [images, …] on disk, mapped into memory page by page."""

    array: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, numbers: NDArray[np.int64] | list[int]) -> Tensor:
        """The features of the given images."""
        return torch.from_numpy(np.ascontiguousarray(self.array[numbers]))


@torch.inference_mode()
def cached_features(
    directory: Path,
    key: str,
    features: Callable[[Tensor], Tensor],
    pictures: Iterable[tuple[list[int], Tensor]],
    view: int,
    *,
    images: int,
    device: torch.device,
    advance: Advance,
) -> FeatureCache:
    """The features of all `pictures` in one view; computed and stored when `key` is not there yet.

    A cache belongs to one run, whose checkpoint fixes what the features depend on. It counts as whole only once its
    note is written, so an interrupted one is made again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, note = directory / f"{key}-{view}.npy", directory / f"{key}-{view}.json"
    if not (note.is_file() and file.is_file()):
        stored: NDArray[np.float32] | None = None
        for numbers, batch in pictures:
            found = features(batch.to(device)).cpu().numpy()
            if stored is None:
                shape: tuple[int, ...] = (images, *found.shape[1:])
                stored = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
            stored[numbers] = found
            advance(len(numbers))
        assert stored is not None  # a data set is never empty
        del stored  # closing the map writes it out
        write_text_whole(note, json.dumps({"images": images, "shape": shape}))
    return FeatureCache(np.load(file, mmap_mode="r", allow_pickle=False))


class CellMoments:
    """Sums over cells from which mean and covariance follow; memory does not grow with the data."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """`features` [batch, channels, rows, columns]"""
        cells = features.detach().cpu().movedim(1, -1).flatten(0, 2)
        self.count += len(cells)
        self.sum += cells.sum(0, dtype=torch.float64)
        self.products += (cells.t() @ cells).double()

    def principal_components(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """weight [width, channels] and bias [width] of the affine map to the leading components, and their variances
        [width]. All are scaled together, so that their relative sizes stay, to a mean variance of 1."""
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        leading = vectors[:, -width:].flip(1)
        # Eigenvectors come with an arbitrary sign; fix it, or two machines would train different networks.
        signs = torch.sign(leading.gather(0, leading.abs().argmax(0, keepdim=True)))
        mean_variance = values[-width:].mean().clamp_min(1e-12)
        weight = (leading * signs).t() / mean_variance.sqrt()
        return weight.float(), (-weight @ mean).float(), (values[-width:].flip(0) / mean_variance).float()


def set_affine(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Make a 1×1 convolution that affine map."""
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
) -> None:
    """Set the network's reduction to the principal components of the cells of all `pictures` (batches of numbers and
    uint8 [batch, H, W, 3]), and start the add-on convolution as the leading ones.

    Distances between cells then start as distances between their features, at a size where the similarity still
    has a slope: two random cells stand about `START_DISTANCE` apart.
    """
    if network.reduction is None:
        return
    moments = CellMoments(network.backbone.channels)
    for numbers, batch in pictures:
        moments.add(network.backbone(network.normalise(batch.to(device))))
        advance(len(numbers))
    weight, bias, variances = moments.principal_components(network.reduction.out_channels)
    set_affine(network.reduction, weight, bias)
    convolution = network.add_on[1]
    assert isinstance(convolution, nn.Conv2d)
    kept = variances[: convolution.out_channels].sum().clamp_min(1e-12)
    # Two independent cells differ by twice the variance; the sigmoid's slope at 0 is 1/4.
    scale = float((START_DISTANCE * 16 / (2 * kept)).sqrt())
    set_affine(
        convolution,
        scale * torch.eye(convolution.out_channels, convolution.in_channels),
        torch.zeros(convolution.out_channels),
    )


Part = Literal["fit", "selection"]
# Views from this number on are random crops that no cache holds.
FRESH_VIEW = 1000


def fresh_view(step: int) -> int:
    """The view of a step that sees every image anew."""
    return FRESH_VIEW + step


class Feed:
    """Features of the fit and selection images: from caches where the backbone stands still, else computed anew."""

    def __init__(
        self,
        network: PrototypeNetwork | LinearNetwork,
        fit: Dataset,
        selection: Dataset,
        config: Config,
        directory: Path,
        frozen: bool,
        device: torch.device,
        console: Console,
    ) -> None:
        self.network, self.config, self.directory, self.frozen = network, config, directory, frozen
        self.datasets: dict[Part, Dataset] = {"fit": fit, "selection": selection}
        self.views = Views(config.data, config.image, config.seed)
        self.device, self.console = device, console
        self.caches: dict[tuple[Part, int], FeatureCache] = {}

    def pictures(self, part: Part, numbers: NDArray[np.int64], view: int) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of pictures in one view: their numbers and uint8 [batch, H, W, 3]."""
        dataset = self.datasets[part]
        return batches(lambda number: self.views.of(dataset, number, view), numbers.tolist(), self.config.batch)

    def varied(self, numbers: NDArray[np.int64], step: int, *, learning: bool = False) -> Tensor:
        """Features of fit images, at most a batch, each in a view drawn for this step; with gradients if `learning`."""
        if not self.frozen:
            _, pictures = next(self.pictures("fit", numbers, fresh_view(step)))
            with torch.set_grad_enabled(learning):
                return self.network.features(pictures.to(self.device))
        drawn = np.random.default_rng((self.config.seed, step, int(numbers[0])))
        views = drawn.integers(0, self.config.data.views, len(numbers))
        pieces = [
            (places, self._cache("fit", view).batch(numbers[places]))
            for view in np.unique(views).tolist()
            for places in [np.flatnonzero(views == view)]
        ]
        order = np.argsort(np.concatenate([places for places, _ in pieces]))
        return torch.cat([found for _, found in pieces])[torch.from_numpy(order)].to(self.device)

    @torch.inference_mode()
    def still(self, part: Part, numbers: NDArray[np.int64], view: int = PLAIN) -> Tensor:
        """Features of pictures in one view, at most a batch."""
        if self.frozen:
            return self._cache(part, view).batch(numbers).to(self.device)
        _, pictures = next(self.pictures(part, numbers, view))
        return self.network.features(pictures.to(self.device))

    def _cache(self, part: Part, view: int) -> FeatureCache:
        if (part, view) not in self.caches:
            dataset = self.datasets[part]
            label = f"features of {part} images, view {view + 1}"
            with tracked(self.console, label, len(dataset)) as advance:
                self.caches[part, view] = cached_features(
                    self.directory,
                    part,
                    self.network.features,
                    self.pictures(part, np.arange(len(dataset)), view),
                    view,
                    images=len(dataset),
                    device=self.device,
                    advance=advance,
                )
        return self.caches[part, view]


def epoch_order(count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A random order of `count` images that depends on the seed alone."""
    return np.random.default_rng(seed).permutation(count)


def slices(order: NDArray[np.int64], size: int) -> Iterator[NDArray[Any]]:
    """Consecutive pieces of an order."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
