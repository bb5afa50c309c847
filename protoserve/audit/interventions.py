"""Audited pictures with one thing changed: without one part, or before another background."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.masks import Masks
from protoserve.errors import InputError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import Geometry, InputRule

INTERVENTIONS: Final = "interventions"
WITHOUT: Final = "without"
BACKGROUND: Final = "background"


@dataclass(frozen=True)
class Interventions:
    """A folder of changed pictures: for the image `test/Bird/1.png` the files `without/PART/test/Bird/1.png` and
    `background/test/Bird/1.png`, each as large as the image. `parts` maps the parts' names to their values in masks;
    `rule` makes the model's input.
    """

    directory: Path
    parts: Mapping[str, int]
    rule: InputRule

    def without(self, image: str, geometry: Geometry) -> dict[int, NDArray[np.uint8]]:
        """Return the image without each of its parts, at model size, by the part's value; those that there are.

        Raises InputError for a file of another size than the image's `geometry` says, and as `decode`.
        """
        files = {value: self.directory / WITHOUT / part / image for part, value in self.parts.items()}
        return {value: self._read(file, geometry) for value, file in files.items() if file.is_file()}

    def background(self, image: str, geometry: Geometry) -> NDArray[np.uint8] | None:
        """Return the image before another background, at model size, or None; raises as `without`."""
        file = self.directory / BACKGROUND / image
        return self._read(file, geometry) if file.is_file() else None

    def _read(self, file: Path, geometry: Geometry) -> NDArray[np.uint8]:
        fitted = fit(decode(file), self.rule)
        if fitted.geometry != geometry:
            found, size = fitted.geometry, (geometry.picture_width, geometry.picture_height)
            raise InputError(
                f"{file}: has {found.picture_width} × {found.picture_height} pixels and its picture "
                f"{size[0]} × {size[1]}; make it as large"
            )
        return fitted.array


def find_interventions(data: Path, masks: Masks | None, rule: InputRule) -> Interventions | None:
    """Return the changed pictures in the data set's folder `interventions`; None if it has none, or no masks."""
    directory = data / INTERVENTIONS
    return Interventions(directory, masks.parts, rule) if masks is not None and directory.is_dir() else None
