"""The public Python interface: `load(bundle).predict(images)`.

>>> import protoserve
>>> model = protoserve.load("bundles/grocery")                    # doctest: +SKIP
>>> prediction = model.predict("photo.jpg", top_k=5)              # doctest: +SKIP
>>> prediction.levels[0].evidence[0].box                          # doctest: +SKIP
(104, 80, 190, 171)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model, ensemble_of, read_model
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.device import ROUTED, Device, Routed
from protoserve.errors import ImageError, InputError
from protoserve.images.decoding import DEFAULT_LIMITS, ImageSource, Limits, decode
from protoserve.images.fitting import FittedImage, fit
from protoserve.inference.engine import Engine, Outputs, in_order
from protoserve.inference.ensemble_engine import EnsembleEngine, open_engine
from protoserve.inference.evidence import predictions
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.identity import identified
from protoserve.inference.opened_pictures import pictures_at_hand
from protoserve.inference.options import OptionKeywords, PredictOptions, ResolvedOptions
from protoserve.inference.quick_path import open_quick_path
from protoserve.schema import Prediction
from protoserve.taxonomy import Taxonomy

BATCH: Final = 16
_ROUTE: Final = "<U12"  # holds every name of `Outputs.route`
Source = TypeVar("Source", bound=ImageSource)


class Classifier:
    """Predicts with a bundle or an ensemble. Made by `load`; several threads may use it at the same time."""

    def __init__(
        self, bundle: Model, engine: Engine | EnsembleEngine, routed: Routed = "off", threads: int | None = None
    ) -> None:
        if routed not in ROUTED:
            raise InputError(f"routed must be {' or '.join(ROUTED)}, not {routed!r}")
        self.bundle = bundle
        self.engine = engine
        self.table = EvidenceTable.of(bundle)
        self.quick = open_quick_path(bundle, self.table, engine.device, threads) if routed == "auto" else None

    @property
    def taxonomy(self) -> Taxonomy:
        """The class tree of the bundle."""
        return self.bundle.taxonomy

    @overload
    def predict(self, images: ImageSource, **options: Unpack[OptionKeywords]) -> Prediction: ...

    @overload
    def predict(
        self, images: list[Source] | tuple[Source, ...], **options: Unpack[OptionKeywords]
    ) -> list[Prediction]: ...

    def predict(
        self, images: ImageSource | list[Source] | tuple[Source, ...], **options: Unpack[OptionKeywords]
    ) -> Prediction | list[Prediction]:
        """Predict every level, with its evidence, for one image or for each image of a list.

        An image is a path, encoded bytes, a Pillow image, or a uint8 array [H, W, 3] or [H, W]. The `options` are the
        fields of `protoserve.inference.options.PredictOptions`; they hold for all images.

        Raises ImageError for an image that can't be decoded and InputError for a missing file (for a list, both name
        the item's index), and InputError for an option out of range.

        A notebook shows a prediction with its picture, as long as that is at hand: the file, the bytes, or the object
        that was given, which a prediction does not keep alive.
        """
        resolved = PredictOptions(**options).resolved(self.table)
        if not isinstance(images, list | tuple):
            return self._with_pictures(self._predict([self.fit(images)], resolved)[0], images)
        result: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            batch = [self._fit_item(images[item], item) for item in range(start, min(start + BATCH, len(images)))]
            result += self._predict(batch, resolved)
        return [self._with_pictures(*pair) for pair in zip(result, images, strict=True)]

    def _with_pictures(self, prediction: Prediction, image: ImageSource) -> Prediction:
        return prediction.shown_with(pictures_at_hand(image, prediction.image.sha256, self.bundle))

    def fit(
        self,
        image: ImageSource,
        *,
        limits: Limits = DEFAULT_LIMITS,
        formats: tuple[str, ...] | None = None,
        draft: bool = False,
    ) -> FittedImage:
        """Decode one untrusted image and resize it to model size: the part of `predict` before the engine.

        With `draft`, large JPEGs are scaled down while they are decoded. For this, `limits`, `formats` and the errors
        raised, see `protoserve.images.decoding.decode`.
        """
        rule = self.bundle.input
        return fit(decode(image, limits=limits, formats=formats, draft_for=rule if draft else None), rule)

    def predict_fitted(self, fitted: Sequence[FittedImage], **options: Unpack[OptionKeywords]) -> list[Prediction]:
        """Predict images from `fit`: the rest of `predict`. The engine runs once, on all images as one batch."""
        return self._predict(fitted, PredictOptions(**options).resolved(self.table))

    def _predict(self, fitted: Sequence[FittedImage], options: ResolvedOptions) -> list[Prediction]:
        if not fitted:
            return []
        outputs = self.outputs(np.stack([image.array for image in fitted]), [options] * len(fitted))
        made = predictions(outputs, self.table, [image.geometry for image in fitted], options)
        return [identified(prediction, image, options) for prediction, image in zip(made, fitted, strict=True)]

    def outputs(self, images: NDArray[np.uint8], options: Sequence[ResolvedOptions]) -> Outputs:
        """Run the graphs on uint8 RGB images [N, height, width, 3] at model size, each for its own `options`.

        The routed graph runs first where there is one, and the full graph on what that can't answer. What an answer
        does not need may differ from the full graph's outputs; see `QuickPath.outputs`. Raises as `Engine.run` does.
        """
        quick = self.quick
        if quick is None:
            return self.engine.run(images)
        route = np.array(["asked" if option.needs_full_graph else "routed" for option in options], dtype=_ROUTE)
        chosen = np.flatnonzero(route == "routed")
        parts: list[tuple[NDArray[np.int64], Outputs]] = []
        if len(chosen):
            found = quick.run(images[chosen])
            log_probability = quick.probabilities(found)
            others = quick.certain(found, log_probability, [options[index].alternatives for index in chosen.tolist()])
            route[chosen] = np.where(found.certain, np.where(others, "routed", "alternatives"), "uncertain")
            sure = found.certain & others
            if sure.any():
                parts.append((chosen[sure], quick.outputs(found, log_probability).selected(sure)))
        rest = np.flatnonzero(route != "routed")
        if len(rest):
            parts.append((rest, self.engine.run(images[rest])))
        return replace(in_order(parts), route=route)

    def _fit_item(self, image: ImageSource, item: int) -> FittedImage:
        try:
            return self.fit(image)
        except ImageError as error:
            raise ImageError(f"image {item} of the list: {error}", error.code) from error
        except InputError as error:
            raise InputError(f"image {item} of the list: {error}") from error


def load(
    bundle: Path | str | Model | Sequence[Path | str | Bundle],
    device: Device = "auto",
    threads: int | None = None,
    routed: Routed = "auto",
) -> Classifier:
    """Open a bundle for predictions, or several bundles as an ensemble; needs no torch.

    `bundle` is a bundle, an ensemble, the folder of either, or a list of bundles or their folders. The members of an
    ensemble share one taxonomy; their logits are summed before the softmax, and every piece of evidence names its
    `member`.

    `device` is `"auto"` (CUDA if it works, else the CPU), `"cpu"` or `"cuda"`; `threads` limits the CPU threads of one
    call. With `routed` `"auto"`, the bundle's routed graph answers what it can on a CPU, and the full graph the rest;
    answers are the same. `"off"` leaves it unused. Raises InputError for a missing bundle, an unknown device or members
    that don't fit together, BundleError for a damaged bundle, and DeviceError if CUDA is requested and can't be used.
    """
    model = open_model(bundle)
    return Classifier(model, open_engine(model, device=device, threads=threads), routed, threads)


def open_model(bundle: Path | str | Model | Sequence[Path | str | Bundle]) -> Model:
    """Open and verify the argument `bundle` of `load`; a list of one bundle gives that bundle."""
    if isinstance(bundle, Bundle | Ensemble):
        return bundle
    if isinstance(bundle, Path | str):
        return read_model(bundle)
    members = [member if isinstance(member, Bundle) else read_bundle(member) for member in bundle]
    return members[0] if len(members) == 1 else ensemble_of(members)
