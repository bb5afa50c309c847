"""Makes past answers again: `protoserve.verify(answer, picture, bundle)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.folder import Bundle
from protoserve.device import Device
from protoserve.errors import InputError, MissingExtraError
from protoserve.graph_signature import OUTPUT_NAMES
from protoserve.images.fitting import FittedImage
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.engine import Outputs
from protoserve.inference.ensemble_engine import EnsembleEngine
from protoserve.inference.evidence import predictions
from protoserve.inference.identity import identified, options_of
from protoserve.replay.answers import checked_answer, read_answers
from protoserve.replay.comparing import differences
from protoserve.replay.scored import SUFFIX, read_scored
from protoserve.schema import Prediction

# How far numbers may be apart.
TOLERANCE: Final = 1e-4
# The entry point of the package that runs graphs in other runtimes than onnxruntime.
RUNTIMES: Final = "protoserve.runtimes"


@dataclass(frozen=True)
class Verification:
    """How an answer compares with the same one made again: where they differ, and what could not be checked."""

    differences: tuple[str, ...]
    notes: tuple[str, ...]
    again: Prediction

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(
    answer: Path | str | Mapping[str, Any] | Prediction,
    image: Path | str | bytes,
    bundle: Path | str | Model,
    *,
    target: str = "onnx",
    device: Device = "auto",
    tolerance: float = TOLERANCE,
) -> Verification:
    """Make an answer again, with its own options, from its picture and bundle, and compare the two.

    `answer` is one answer, or a file of answers, of which the one to this picture is taken: JSON, or a Parquet file of
    `protoserve score`. `target` names the file to run, in its own runtime, of the bundle or of each member of an
    ensemble. The version of the bundle, the picture's SHA-256, the path, boxes, contributions
    and all other fields of the answer are compared; numbers may differ by `tolerance`.

    Raises InputError for an answer, a picture or a target that can't be used; otherwise as `protoserve.load` does.
    """
    classifier = load(bundle, device=device)
    fitted = classifier.fit(image)
    stored = _chosen(answer, fitted)
    if stored["image"].get("drafted"):
        fitted = classifier.fit(image, draft=True)
    options = options_of(stored.get("options", {})).resolved(classifier.table)
    outputs, notes = _outputs(classifier, fitted, target)
    made = predictions(outputs, classifier.table, [fitted.geometry], options)[0]
    again = identified(made, fitted, options)
    if stored["image"].get("sha256") is None:
        notes.append("the answer does not name its picture, so only its result tells whether this is the one")
    found = differences(stored, again.model_dump(mode="json"), tolerance)
    return Verification(tuple(found), tuple(notes), again)


def _chosen(answer: Path | str | Mapping[str, Any] | Prediction, fitted: FittedImage) -> dict[str, Any]:
    """Return the one answer, or that to the picture among several."""
    if isinstance(answer, Prediction):
        return answer.model_dump(mode="json")
    if isinstance(answer, Mapping):
        return checked_answer(answer)
    if Path(answer).suffix == SUFFIX:
        return read_scored(Path(answer), fitted.sha256)
    answers = read_answers(Path(answer))
    if len(answers) == 1:
        return answers[0]
    for stored in answers:
        if stored["image"].get("sha256") == fitted.sha256:
            return stored
    raise InputError(f"{answer}: none of its {len(answers)} answers is to this picture (SHA-256 {fitted.sha256})")


def _outputs(classifier: Classifier, fitted: FittedImage, target: str) -> tuple[Outputs, list[str]]:
    """Run a model's files of this target on one picture; also returns what is to be noted about them."""
    picture = fitted.array[None]
    if target == "onnx":
        return classifier.engine.run(picture), []
    if isinstance(classifier.engine, EnsembleEngine) and isinstance(classifier.bundle, Ensemble):
        parts = [_outputs_of(member, picture, target) for member in classifier.bundle.members]
        outputs = classifier.engine.combiner.combine([part for part, _ in parts])
        return outputs, list(dict.fromkeys(note for _, notes in parts for note in notes))
    assert isinstance(classifier.bundle, Bundle)
    return _outputs_of(classifier.bundle, picture, target)


def _outputs_of(bundle: Bundle, picture: NDArray[np.uint8], target: str) -> tuple[Outputs, list[str]]:
    if not bundle.manifest.graph.centred:
        raise InputError(f"{bundle.directory}: only its target onnx tells centred evidence; export its run again")
    opened = _opened(bundle, target)
    arrays = opened.run(picture)
    outputs = Outputs(**{name: np.asarray(arrays[name])[:1] for name in OUTPUT_NAMES})
    return outputs, [opened.note] if opened.note else []


def _opened(bundle: Bundle, target: str) -> Any:
    """Open a file of a bundle: what the entry point returns has `run` and `note`."""
    for entry_point in entry_points(group=RUNTIMES):
        try:
            return entry_point.load()(bundle, target)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the target {target!r} (which imports {error.name})", "export") from error
    raise MissingExtraError(f"the target {target!r}", "export")
