"""A cache on disk for features of a frozen backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.errors import InputError
from protoserve.files import new_file, write_text

Advance = Callable[[int], None]


@dataclass(frozen=True)
class FeatureCache:
    """Memory-mapped features, float32 or float16 [images, …], in one or more consecutive pieces."""

    arrays: tuple[NDArray[np.floating[Any]], ...]

    def __len__(self) -> int:
        return sum(len(array) for array in self.arrays)

    def batch(self, numbers: NDArray[np.int64] | list[int]) -> Tensor:
        """float32 [batch, …]: the features of these images."""
        if len(self.arrays) == 1:
            return torch.from_numpy(np.asarray(self.arrays[0][numbers], dtype=np.float32))
        images = np.asarray(numbers)
        rows = np.empty((len(images), *self.arrays[0].shape[1:]), dtype=np.float32)
        first = 0
        for array in self.arrays:
            here = (first <= images) & (images < first + len(array))
            rows[here] = array[images[here] - first]
            first += len(array)
        return torch.from_numpy(rows)


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
    """The features of all `pictures` in one view, read from the cache or else computed and stored.

    `pictures` yields batches of (numbers below `images`, uint8 [batch, H, W, 3]). The folder and `key` must identify
    everything that the features depend on. An array is valid only once its JSON file is written, so an interrupted
    computation starts again. Raises InputError if the disk is too full, and for values outside the range of `dtype`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, marker = cache_files(directory, key, view)
    if not (file.is_file() and _is_complete(marker, images)):
        marker.unlink(missing_ok=True)
        # Runs that share a folder may compute the same features at the same time, so each writes its own draft.
        with new_file(file) as draft:
            stored: NDArray[np.floating[Any]] | None = None
            for numbers, batch in pictures:
                rows = features(batch.to(device)).cpu().numpy()
                if stored is None:
                    shape: tuple[int, ...] = (images, *rows.shape[1:])
                    _check_disk_space(file, int(np.prod(shape)) * np.dtype(dtype).itemsize)
                    stored = np.lib.format.open_memmap(draft, mode="w+", dtype=dtype, shape=shape)
                if (largest := float(np.abs(rows).max(initial=0.0))) > float(np.finfo(dtype).max):
                    raise InputError(
                        f"{file}: features reach {largest:.3g}, more than {np.dtype(dtype)} holds; "
                        "set finetune.fresh: true"
                    )
                stored[numbers] = rows
                advance(len(numbers))
            assert stored is not None  # a data set is never empty
            del stored  # flushes the memory map
        write_text(marker, json.dumps({"images": images, "shape": shape}))
    return FeatureCache((np.load(file, mmap_mode="r", allow_pickle=False),))


def cache_files(directory: Path, key: str, view: int) -> tuple[Path, Path]:
    """The array of a view, and the JSON file that marks the array as complete."""
    return directory / f"{key}-{view}.npy", directory / f"{key}-{view}.json"


def _is_complete(marker: Path, images: int) -> bool:
    # Each process caches its own images, so their number changes with the number of processes.
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["images"] == images


def _check_disk_space(file: Path, size: int) -> None:
    """Raise InputError if a file of `size` bytes does not fit on the disk. Writing to a full disk through a memory map
    would kill the process without a message."""
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise InputError(
            f"{file}: needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left; give --run on another disk, "
            "lower data.views or model.reduced, or set finetune.fresh: true"
        )
