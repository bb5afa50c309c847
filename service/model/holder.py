"""The served model, and its replacement while requests continue."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from protoserve.bundle.ensemble import ENSEMBLE
from protoserve.errors import BundleError, ProtoServeError
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.evidence import predictions
from service.operations import metrics
from service.operations.metrics import PredictionCounts
from service.settings import Settings

# The longest time of an inference while a model is warmed up. A graph with an endless loop would otherwise hold the
# thread that watches for new models for good.
WARM_UP_SECONDS: Final = 120.0

_LOG = logging.getLogger("protoserve.service")


@dataclass(frozen=True)
class LoadedModel:
    """A model that has been warmed up. A request uses the same one from its start to its end."""

    classifier: Classifier
    counts: PredictionCounts
    batch_limit: int
    """The most images in one inference; the model was warmed up with a batch of this size."""

    @property
    def version(self) -> str:
        """The model's content version, `sha256:…`."""
        return self.classifier.bundle.version


@dataclass(frozen=True)
class _FolderState:
    """Identifies the content of a model's folder without reading it."""

    directory: Path
    inode: int
    modified_ns: int
    size: int


class ModelHolder:
    """Holds the current model, and replaces it when `locate` returns another folder.

    `reload` verifies, loads and warms up the new model while the old one continues to answer; the old one is freed
    when its last request ends. A model that cannot be used is refused with a log line, and the old one stays.

    Raises the errors of `protoserve.load` when the first model cannot be used.
    """

    def __init__(self, locate: Callable[[], Path], settings: Settings) -> None:
        self._locate = locate
        self._settings = settings
        self._lock = threading.Lock()
        self._last_refusal = ""
        self._state = _folder_state(locate())
        self._current = self._load(self._state)
        _set_model_gauge(self._current, 1)

    def current(self) -> LoadedModel:
        """Return the model for a new request. Fast, and safe to call from any thread."""
        return self._current

    def reload(self) -> bool:
        """Replace the model if `locate` now leads to another one. Returns whether it was replaced."""
        with self._lock:
            try:
                state = _folder_state(self._locate())
                if state == self._state:
                    return False
                new = self._load(state)
            except (ProtoServeError, OSError) as error:
                self._refuse(str(error))
                return False
            old, self._current, self._state, self._last_refusal = self._current, new, state, ""
            _set_model_gauge(old, 0)
            _set_model_gauge(new, 1)
            metrics.RELOADS.labels("done").inc()
            _LOG.info("the model changed", extra={"model": new.version, "before": old.version})
            return True

    def _refuse(self, reason: str) -> None:
        # Log each reason once, not on every check.
        if reason != self._last_refusal:
            self._last_refusal = reason
            metrics.RELOADS.labels("refused").inc()
            _LOG.error("the new model cannot be used, the old one continues to answer: %s", reason)

    def _load(self, state: _FolderState) -> LoadedModel:
        settings = self._settings
        classifier = load(
            state.directory, device=settings.device, threads=settings.inference_threads(), routed=settings.routed
        )
        if _folder_state(state.directory) != state:
            # The graph may be another than the one that was verified.
            raise BundleError(f"{state.directory}: changed while it was loaded; move a link instead")
        batch_limit = settings.batch_limit(classifier.engine.device)
        warm_up(classifier, batch_limit)
        return LoadedModel(classifier, PredictionCounts(classifier.table), batch_limit)


def warm_up(classifier: Classifier, batch_limit: int) -> None:
    """Predict one image, then a batch of `batch_limit`, to allocate memory and select kernels before the first request.

    Raises DeviceError when the device fails, or the graph does not end within `WARM_UP_SECONDS`.
    """
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (124, 116, 104)).save(picture, "JPEG")
    fitted = classifier.fit(picture.getvalue())
    outputs = classifier.engine.run(fitted.array[None], seconds=WARM_UP_SECONDS)
    predictions(outputs, classifier.table, [fitted.geometry])
    for count in sorted({1, batch_limit}):
        batch = np.stack([fitted.array] * count)
        if count > 1:
            classifier.engine.run(batch, seconds=WARM_UP_SECONDS)
        if classifier.quick is not None:
            classifier.quick.run(batch, seconds=WARM_UP_SECONDS)


def watch(holder: ModelHolder, seconds: float) -> threading.Event:
    """Call `holder.reload` every `seconds` in a daemon thread. Setting the returned event ends the thread."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(seconds):
            holder.reload()

    threading.Thread(target=poll, name="model-watch", daemon=True).start()
    return stop


def _set_model_gauge(model: LoadedModel, value: int) -> None:
    bundle = model.classifier.bundle
    device = model.classifier.engine.device
    metrics.MODEL.labels(bundle.name, bundle.version, bundle.kind, device).set(value)


def _folder_state(path: Path) -> _FolderState:
    # Resolve links now, so that the loaded model keeps its own folder when the link moves.
    directory = path.resolve()
    ensemble = directory / ENSEMBLE
    file = ensemble if ensemble.is_file() else directory / "manifest.json"
    try:
        status = file.stat()
    except OSError:
        # Loading the bundle raises a better error.
        return _FolderState(directory, 0, 0, 0)
    return _FolderState(directory, status.st_ino, status.st_mtime_ns, status.st_size)
