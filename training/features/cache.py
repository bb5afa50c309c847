"""Features of a frozen backbone, computed once and kept on disk."""

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
    """float32 or float16 [images, …] on disk, in one or more consecutive pieces, mapped into memory."""

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
    """The features of all `pictures` (their numbers lie below `images`) in one view; computed and stored unless `key`
    is there.

    `key` and the folder stand for everything that the features depend on. The array counts only once its note is
    written, so an interrupted one is computed again. Raises InputError where the disk has no room, and for values that
    `dtype` can't hold.
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
                if (largest := float(np.abs(found).max(initial=0.0))) > float(np.finfo(dtype).max):
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
    """The files of a cache: its array, and the note that marks the array as whole."""
    return directory / f"{key}-{view}.npy", directory / f"{key}-{view}.json"


def _is_whole(note: Path, images: int) -> bool:
    # Under another number of processes, each holds other images.
    return note.is_file() and json.loads(note.read_text(encoding="utf-8"))["images"] == images


def _check_room(file: Path, size: int) -> None:
    """Raise InputError where a file of `size` bytes does not fit. Writing through a memory map to a full disk would
    kill the process without a message."""
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise InputError(
            f"{file}: needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left; give --run on another disk, "
            "lower data.views or model.reduced, or set finetune.fresh: true"
        )
