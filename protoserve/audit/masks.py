"""Masks of an object's parts: a folder that mirrors the data set's, and a description of the values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoserve.errors import InputError
from protoserve.images.geometry import Geometry

MASKS: Final = "masks"
DESCRIPTION: Final = "parts.json"


@dataclass(frozen=True)
class Masks:
    """A folder of masks: for the image `test/Fruit/1.jpg` the file `test/Fruit/1.png`, 8-bit grey; 0 is background,
    every other value a part.

    `decisive` maps a node's name to the values of the parts that tell it from its siblings, `parts` a part's name to
    its value; both are empty without a description.
    """

    directory: Path
    decisive: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, int] = field(default_factory=dict)

    def read(self, image: str, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Return the mask of an image of `size` (height, width), uint8 [height, width]; None if it has none.

        Raises InputError for a file that is not a grey picture of the image's size.
        """
        file = self.directory / PurePosixPath(image).with_suffix(".png")
        if not file.is_file():
            return None
        try:
            with Image.open(file) as mask:
                mode, values = mask.mode, np.asarray(mask)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: can't read the mask ({error}); write it as an 8-bit grey PNG") from error
        if mode not in ("L", "P") or values.shape != size:
            raise InputError(
                f"{file}: is {mode} of {values.shape[1]} × {values.shape[0]} pixels; a mask is 8-bit grey or "
                f"palette, {size[1]} × {size[0]} pixels as its image"
            )
        return values


def find_masks(data: Path, directory: Path | None) -> Masks | None:
    """Return the masks in `directory`, by default those in the data set's folder `masks`; None if it has none.

    The description is `parts.json` in the folder of the masks or beside it. Raises InputError for a folder that does
    not exist and for a description that can't be read.
    """
    if directory is None:
        directory = data / MASKS
        if not directory.is_dir():
            return None
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; --masks takes a folder that mirrors the data set's")
    descriptions = (directory / DESCRIPTION, directory.parent / DESCRIPTION)
    file = next((file for file in descriptions if file.is_file()), None)
    return Masks(directory, {}) if file is None else Masks(directory, *_described(file))


def at_model_size(mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Return the mask's value under the centre of every pixel of the model's input: uint8 [height, width]; 0 in the
    padding."""
    columns = np.floor(geometry.scale_x * (np.arange(geometry.model_width) + 0.5) + geometry.offset_x).astype(np.int64)
    rows = np.floor(geometry.scale_y * (np.arange(geometry.model_height) + 0.5) + geometry.offset_y).astype(np.int64)
    height, width = mask.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    values = mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)[None, :]]
    return np.where(inside, values, np.uint8(0))


def _described(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Read `decisive` (node → names) and `parts` (value → name) of a description: node → values, name → value."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        values = {str(name): int(value) for value, name in content["parts"].items() if name is not None}
        named = {str(node): [str(part) for part in parts] for node, parts in content.get("decisive", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{file}: not a description of parts ({error!r}); write {{"parts": {{"1": "beak"}}, '
            '"decisive": {"Bird": ["beak"]}}'
        ) from error
    decisive = {}
    for node, parts in named.items():
        if unknown := [part for part in parts if part not in values]:
            raise InputError(f"{file}: {node!r} is told by {unknown[0]!r}, which is not one of its parts; add it")
        decisive[node] = tuple(values[part] for part in parts)
    return decisive, values
