"""Features of a frozen backbone, computed once: a cache on disk, and the principal components that reduce it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.files import new_file, write_text
from protoserve.networks.network import AddOn, PrototypeNetwork

Advance = Callable[[int], None]
START_DISTANCE = 2.5


@dataclass(frozen=True)
class FeatureCache:
    """float32 or float16 [images, …] on disk, in one or more consecutive pieces, mapped into memory page by page."""

    arrays: tuple[NDArray[np.floating[Any]], ...]

    def __len__(self) -> int:
        return sum(len(array) for array in self.arrays)

    def batch(self, numbers: NDArray[np.int64] | list[int]) -> Tensor:
        """The features of the given images, float32."""
        if len(self.arrays) == 1:
            return torch.from_numpy(np.asarray(self.arrays[0][numbers], dtype=np.float32))
        chosen = np.asarray(numbers)
        found = np.empty((len(chosen), *self.arrays[0].shape[1:]), dtype=np.float32)
        first = 0
        for array in self.arrays:
            here = (first <= chosen) & (chosen < first + len(array))
            found[here] = array[chosen[here] - first]
            first += len(array)
        return torch.from_numpy(found)


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
    dtype: type[np.float32] | type[np.float16] = np.float32,
) -> FeatureCache:
    """The features of all `pictures` (numbers below `images`) in one view; computed and stored when `key` is not there
    yet.

    `key` and the folder stand for all that the features depend on. The array takes its name when it is whole and counts
    once its note is written, so an interrupted one is made again. Raises InputError where the disk has no room for it,
    and for values that `dtype` can't hold.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, note = cache_files(directory, key, view)
    if not (file.is_file() and _is_whole(note, images)):
        note.unlink(missing_ok=True)
        # Where runs share a folder, two may compute the same: each writes a draft of its own.
        with new_file(file) as draft:
            stored: NDArray[np.floating[Any]] | None = None
            for numbers, batch in pictures:
                found = features(batch.to(device)).cpu().numpy()
                if stored is None:
                    shape: tuple[int, ...] = (images, *found.shape[1:])
                    _check_room(file, int(np.prod(shape)) * np.dtype(dtype).itemsize)
                    stored = np.lib.format.open_memmap(draft, mode="w+", dtype=dtype, shape=shape)
                if (largest := float(np.abs(found).max(initial=0.0))) > np.finfo(dtype).max:
                    raise InputError(
                        f"{file}: features reach {largest:.3g}, more than {np.dtype(dtype)} holds; "
                        "set finetune.fresh: true"
                    )
                stored[numbers] = found
                advance(len(numbers))
            assert stored is not None  # a data set is never empty
            del stored  # closing the map writes it out
        write_text(note, json.dumps({"images": images, "shape": shape}))
    return FeatureCache((np.load(file, mmap_mode="r", allow_pickle=False),))


def cache_files(directory: Path, key: str, view: int) -> tuple[Path, Path]:
    """A cache's array and the note that says it is whole."""
    return directory / f"{key}-{view}.npy", directory / f"{key}-{view}.json"


def _is_whole(note: Path, images: int) -> bool:
    # With another number of processes each holds other images.
    return note.is_file() and json.loads(note.read_text(encoding="utf-8"))["images"] == images


def _check_room(file: Path, size: int) -> None:
    """Raise InputError where a file of `size` bytes does not fit; a full disk met through a memory map kills without a
    word."""
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise InputError(
            f"{file}: needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left; give --run on another disk, "
            "lower data.views or model.reduced, or set finetune.fresh: true"
        )


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
    mapping = network.add_on[1]
    convolution = mapping.direct if isinstance(mapping, AddOn) else mapping
    assert isinstance(convolution, nn.Conv2d)
    kept = variances[: convolution.out_channels].sum().clamp_min(1e-12)
    # Two independent cells differ by twice the variance; the sigmoid's slope at 0 is 1/4.
    scale = float((START_DISTANCE * 16 / (2 * kept)).sqrt())
    set_affine(
        convolution,
        scale * torch.eye(convolution.out_channels, convolution.in_channels),
        torch.zeros(convolution.out_channels),
    )
    if isinstance(mapping, AddOn):
        # The rectified layer sees its input at the same scale.
        with torch.no_grad():
            mapping.hidden.weight.mul_(scale)


def epoch_order(count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A random order of `count` images that depends on the seed alone."""
    return np.random.default_rng(seed).permutation(count)


def slices(order: NDArray[np.int64], size: int) -> Iterator[NDArray[Any]]:
    """Consecutive pieces of an order."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
