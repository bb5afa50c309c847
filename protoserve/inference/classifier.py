"""The public Python interface: `load(bundle).predict(images)`.

>>> import protoserve
>>> model = protoserve.load("bundles/grocery")                    # doctest: +SKIP
>>> prediction = model.predict("photo.jpg", top_k=5)              # doctest: +SKIP
>>> prediction.levels[0].evidence[0].box                          # doctest: +SKIP
(104, 80, 190, 171)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar, overload

import numpy as np

from protoserve.bundle.ensemble import Ensemble, Model, ensemble_of, read_model
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.device import Device
from protoserve.errors import ImageError, InputError
from protoserve.images.decoding import DEFAULT_LIMITS, FORMATS, ImageSource, Limits, decode
from protoserve.images.fitting import FittedImage, fit
from protoserve.inference.engine import Engine
from protoserve.inference.ensemble_engine import EnsembleEngine, open_engine
from protoserve.inference.evidence import EvidenceTable, checked_top_k, predictions
from protoserve.schema import Prediction
from protoserve.taxonomy import Taxonomy

BATCH: Final = 16
Source = TypeVar("Source", bound=ImageSource)


class Classifier:
    """A bundle, or an ensemble, that answers. Made by `load`; may be used from several threads at a time."""

    def __init__(self, bundle: Model, engine: Engine | EnsembleEngine) -> None:
        self.bundle = bundle
        self.engine = engine
        self.table = EvidenceTable.of(bundle)

    @property
    def taxonomy(self) -> Taxonomy:
        """The class tree of the bundle."""
        return self.bundle.taxonomy

    @overload
    def predict(
        self, images: ImageSource, *, top_k: int | None = None, alternatives: int = 3, maps: bool = False
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: list[Source] | tuple[Source, ...],
        *,
        top_k: int | None = None,
        alternatives: int = 3,
        maps: bool = False,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageSource | list[Source] | tuple[Source, ...],
        *,
        top_k: int | None = None,
        alternatives: int = 3,
        maps: bool = False,
    ) -> Prediction | list[Prediction]:
        """A prediction at every level, with its evidence, for one image or for each of a list.

        An image is a path, encoded bytes, a Pillow image, or a uint8 array [H, W, 3] or [H, W]. `top_k`
        prototypes are shown per level (by default 5, or all that the bundle keeps if these are fewer), and
        `alternatives` other nodes of the level; `maps` adds each prototype's similarity at every cell.

        Raises ImageError for what can't be read as a picture and InputError for a missing file (in a list,
        both name the item), and InputError for a `top_k` or `alternatives` out of range.
        """
        checked_top_k(self.table, top_k)
        if not isinstance(images, list | tuple):
            return self.predict_fitted([self.fit(images)], top_k=top_k, alternatives=alternatives, maps=maps)[0]
        result = []
        for start in range(0, len(images), BATCH):
            batch = [self._fit_item(images[item], item) for item in range(start, min(start + BATCH, len(images)))]
            result += self.predict_fitted(batch, top_k=top_k, alternatives=alternatives, maps=maps)
        return result

    def fit(
        self,
        image: ImageSource,
        *,
        limits: Limits = DEFAULT_LIMITS,
        formats: tuple[str, ...] = FORMATS,
        draft: bool = False,
    ) -> FittedImage:
        """Read one untrusted image and bring it to model size: the half of `predict` that needs no engine.

        With `draft`, large JPEGs are reduced while they are decoded; see `protoserve.images.decoding.decode`.

        Raises InputError and ImageError as `protoserve.images.decoding.decode` does.
        """
        rule = self.bundle.input
        return fit(decode(image, limits=limits, formats=formats, draft_for=rule if draft else None), rule)

    def predict_fitted(
        self,
        fitted: Sequence[FittedImage],
        *,
        top_k: int | None = None,
        alternatives: int = 3,
        maps: bool = False,
    ) -> list[Prediction]:
        """The other half of `predict`: one run of the engine over all the images, which are one batch."""
        if not fitted:
            return []
        outputs = self.engine.run(np.stack([image.array for image in fitted]))
        return predictions(
            outputs,
            self.table,
            [image.geometry for image in fitted],
            top_k=top_k,
            alternatives=alternatives,
            maps=maps,
        )

    def _fit_item(self, image: ImageSource, item: int) -> FittedImage:
        try:
            return self.fit(image)
        except ImageError as error:
            raise ImageError(f"image {item} of the list: {error}", error.code) from error
        except InputError as error:
            raise InputError(f"image {item} of the list: {error}") from error


def load(
    bundle: Path | str | Model | Sequence[Path | str | Bundle], device: Device = "auto", threads: int | None = None
) -> Classifier:
    """Open a bundle for predictions, or several on one taxonomy to answer as one; no torch needed.

    `bundle` is a bundle, an ensemble, the folder of either, or a list of bundles or their folders: their logits are
    summed before the softmax, and every piece of evidence says whose it is (`member`).

    `device` is `"auto"` (CUDA where it works, else the CPU), `"cpu"` or `"cuda"`; `threads` bounds the CPU
    threads of one call. Raises InputError when there is no bundle or several don't fit together, BundleError when one
    is damaged, DeviceError when CUDA is asked for and can't be used.
    """
    model = open_model(bundle)
    return Classifier(model, open_engine(model, device=device, threads=threads))


def open_model(bundle: Path | str | Model | Sequence[Path | str | Bundle]) -> Model:
    """The bundle or ensemble that `load` is given, verified; a list of one is that bundle."""
    if isinstance(bundle, Bundle | Ensemble):
        return bundle
    if isinstance(bundle, Path | str):
        return read_model(bundle)
    members = [member if isinstance(member, Bundle) else read_bundle(member) for member in bundle]
    return members[0] if len(members) == 1 else ensemble_of(members)
