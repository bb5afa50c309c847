"""The model that answers, and its change for another one while requests go on."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from protoserve.bundle.ensemble import ENSEMBLE
from protoserve.errors import ProtoServeError
from protoserve.inference.classifier import Classifier, load
from service import metrics
from service.metrics import PredictionCounts

LOG = logging.getLogger("protoserve.service")


@dataclass(frozen=True)
class Current:
    """A model that has answered once, and what counts its predictions. A request keeps the one it began with."""

    classifier: Classifier
    counts: PredictionCounts

    @property
    def version(self) -> str:
        """The model's content version, `sha256:…`."""
        return self.classifier.bundle.manifest.version


@dataclass(frozen=True)
class _Mark:
    """By which a model's folder is known without reading it."""

    directory: Path
    inode: int
    changed: int
    size: int


class CurrentModel:
    """Holds the current model; `look` changes it when `place` leads somewhere else by then.

    The new model is verified, loaded and asked once beside the old one, which goes on answering meanwhile and is
    freed when its last request ends. What can't be used is refused with a line in the log, and the old one stays.
    """

    def __init__(
        self,
        place: Callable[[], Path],
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        batch: int = 1,
    ) -> None:
        self._place = place
        self._device = device
        self._threads = threads
        self._batch = batch
        self._lock = threading.Lock()
        self._refused = ""
        self._mark = _mark_of(place())
        self._current = self._open(self._mark.directory)
        self._show(self._current, 1)

    def __call__(self) -> Current:
        """The model that answers from now on; quick, and safe from any thread."""
        return self._current

    def look(self) -> bool:
        """Change to the model that `place` leads to, when it is another one; True when it was changed."""
        with self._lock:
            try:
                mark = _mark_of(self._place())
                if mark == self._mark:
                    return False
                fresh = self._open(mark.directory)
            except (ProtoServeError, OSError) as error:
                self._refuse(str(error))
                return False
            old, self._current, self._mark, self._refused = self._current, fresh, mark, ""
            self._show(old, 0)
            self._show(fresh, 1)
            metrics.RELOADS.labels("done").inc()
            LOG.info("the model changed", extra={"model": fresh.version, "before": old.version})
            return True

    def _refuse(self, why: str) -> None:
        # Once for each reason, and not again at every look.
        if why != self._refused:
            self._refused = why
            metrics.RELOADS.labels("refused").inc()
            LOG.error("the new model can't be used, the old one goes on answering: %s", why)

    def _open(self, directory: Path) -> Current:
        classifier = load(directory, device=self._device, threads=self._threads)
        warm_up(classifier, self._batch)
        return Current(classifier, PredictionCounts(classifier.table))

    def _show(self, current: Current, value: int) -> None:
        manifest = current.classifier.bundle.manifest
        device = current.classifier.engine.device
        metrics.MODEL.labels(manifest.name, manifest.version, manifest.kind, device).set(value)


def warm_up(classifier: Classifier, batch: int = 1) -> None:
    """One picture all the way, then a batch: memory is claimed and kernels are chosen before the first request.

    The engine refuses by itself to run elsewhere than on the device that was asked for; DeviceError when it fails.
    """
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (124, 116, 104)).save(picture, "JPEG")
    fitted = classifier.fit(picture.getvalue())
    classifier.predict_fitted([fitted])
    if batch > 1:
        classifier.predict_fitted([fitted] * batch)


def watch(model: CurrentModel, seconds: float) -> threading.Event:
    """Look for another model every `seconds`, in a thread that ends with the process or when the event is set."""
    stop = threading.Event()

    def go() -> None:
        while not stop.wait(seconds):
            model.look()

    threading.Thread(target=go, name="model-watch", daemon=True).start()
    return stop


def _mark_of(place: Path) -> _Mark:
    # Where a link points to, so that what is answered stays one model when the link is moved.
    directory = place.resolve()
    ensemble = directory / ENSEMBLE
    file = ensemble if ensemble.is_file() else directory / "manifest.json"
    try:
        found = file.stat()
    except OSError:
        # Reading says better what is wrong.
        return _Mark(directory, 0, 0, 0)
    return _Mark(directory, found.st_ino, found.st_mtime_ns, found.st_size)
