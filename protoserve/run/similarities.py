"""The similarities that a run keeps, `similarities.npz`: what its last layers can be fitted to again without pictures.

A picture enters a last layer only by its largest similarity to each prototype. These few numbers per picture are
enough to change, restrict or refit the last layers of a finished run.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError
from protoserve.files import write_bytes

SIMILARITIES: Final = "similarities.npz"
FORMAT: Final = 1
# A run whose similarities would take more than this, in bytes before compression, keeps none.
MOST_BYTES: Final = 500_000_000


@dataclass(frozen=True)
class KeptImages:
    """The images of one part of a run's data and their similarities.

    `images` names them as `protoserve.data.dataset.Dataset` does. `leaves` int64 [images] are indices into
    `taxonomy.leaves`. `similarity` float32 [images, prototypes] are the largest of all cells.
    """

    images: tuple[str, ...]
    leaves: NDArray[np.int64]
    similarity: NDArray[np.float32]


@dataclass(frozen=True)
class KeptSimilarities:
    """The similarities of a run's `fit` and `selection` images to its prototypes.

    `fit` are of the mirrored pictures if `mirrored`, as the last layers are trained: in the plain source picture, a
    prototype finds the very cell that it was cut from. `selection` are of the plain pictures. On disk, those of `fit`
    have half precision.
    """

    fit: KeptImages
    selection: KeptImages
    mirrored: bool


def kept_bytes(fit: int, selection: int, prototypes: int) -> int:
    """Return the bytes of the similarities of that many images to that many prototypes, as they are written.

    >>> kept_bytes(fit=10, selection=5, prototypes=4)
    160
    """
    return prototypes * (2 * fit + 4 * selection)


def write_similarities(kept: KeptSimilarities, directory: Path) -> None:
    """Write `similarities.npz` into a run's folder, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        format=np.array(FORMAT),
        mirrored=np.array(kept.mirrored),
        fit_images=np.array(kept.fit.images, dtype=np.str_),
        fit_leaves=kept.fit.leaves,
        fit_similarity=kept.fit.similarity.astype(np.float16),
        selection_images=np.array(kept.selection.images, dtype=np.str_),
        selection_leaves=kept.selection.leaves,
        selection_similarity=kept.selection.similarity.astype(np.float32),
    )
    write_bytes(directory / SIMILARITIES, buffer.getvalue())


def read_similarities(directory: Path, prototypes: int) -> KeptSimilarities | None:
    """Read the similarities that a run keeps; None if it keeps none, as runs of older versions do.

    Raises InputError for a file that is damaged, newer than this version, or of another number of `prototypes`.
    """
    file = directory / SIMILARITIES
    if not file.is_file():
        return None
    try:
        # numpy leaves a damaged file open.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            content: dict[str, NDArray[Any]] = {name: arrays[name] for name in arrays.files}
        written = int(content["format"])
        if written > FORMAT:
            raise InputError(f"{file}: format {written} is newer than {FORMAT}, the newest that this version reads")
        kept = KeptSimilarities(_part(content, "fit"), _part(content, "selection"), bool(content["mirrored"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: can't read it ({error}); remove it, and give the run's data set instead") from error
    for part in (kept.fit, kept.selection):
        if part.similarity.shape != (len(part.images), prototypes):
            raise InputError(
                f"{file}: holds similarities {part.similarity.shape} of {len(part.images)} images, but the run has "
                f"{prototypes} prototypes; remove it, and give the run's data set instead"
            )
    return kept


def _part(content: dict[str, NDArray[Any]], name: str) -> KeptImages:
    images = tuple(str(image) for image in content[f"{name}_images"].tolist())
    similarity = content[f"{name}_similarity"].astype(np.float32)
    return KeptImages(images, content[f"{name}_leaves"].astype(np.int64), similarity)
