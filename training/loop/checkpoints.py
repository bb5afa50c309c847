"""The state of a run, and its conversion to and from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protoserve.errors import InputError
from protoserve.run.records import StageRecords
from protoserve.similarity_statistics import SimilarityStatistics
from training.prototypes.nearest_patches import NearestPatches
from training.prototypes.projection import Projection

CHECKPOINT = "checkpoint.pt"
FORMAT = 4


class Teacher(NamedTuple):
    """A linear classifier of mean features: `weight` [leaves, width] and `bias` [leaves]."""

    weight: Tensor
    bias: Tensor


@dataclass
class State:
    """The state that steps change, apart from the network and the optimisers. The checkpoint holds all of it.

    `step` is the number of the next step. `records` become part of the run's metrics, `patches` and `separation` of its
    analysis. `best` holds the weights of the best epochs so far, by stage and name (see `KeepBest`). `seconds` counts
    training time.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    projection: Projection | None = None
    records: StageRecords = field(default_factory=StageRecords)
    best: dict[str, Tensor] = field(default_factory=dict)
    teacher: Teacher | None = None
    patches: NearestPatches | None = None
    separation: SimilarityStatistics | None = None
    seconds: float = 0.0


def state_content(state: State) -> dict[str, Any]:
    """The state as text, numbers and tensors only, so that `torch.load` with `weights_only` can read it."""
    patches, separation = state.patches, state.separation
    return {
        "step": state.step,
        "seconds": state.seconds,
        "history": json.dumps(state.history),
        "records": state.records.model_dump_json(),
        "best": state.best,
        "projection": None if state.projection is None else state.projection._asdict(),
        "teacher": None if state.teacher is None else state.teacher._asdict(),
        "patches": None if patches is None else {name: torch.from_numpy(a) for name, a in patches._asdict().items()},
        "separation": None
        if separation is None
        else {name: torch.from_numpy(a) for name, a in vars(separation).items()},
    }


def read_state(content: dict[str, Any]) -> State:
    """The state from the content that `state_content` wrote; its tensors may be on any device."""
    projection, teacher = content["projection"], content["teacher"]
    patches, separation = content["patches"], content["separation"]
    return State(
        step=content["step"],
        history=json.loads(content["history"]),
        projection=None if projection is None else Projection(**{name: t.cpu() for name, t in projection.items()}),
        records=StageRecords.model_validate_json(content["records"]),
        best=content["best"],
        teacher=None if teacher is None else Teacher(**teacher),
        patches=None if patches is None else NearestPatches(**{name: t.cpu().numpy() for name, t in patches.items()}),
        separation=None
        if separation is None
        else SimilarityStatistics(**{name: t.cpu().numpy() for name, t in separation.items()}),
        seconds=content["seconds"],
    )


def read_checkpoint(file: Path, identity: str, device: torch.device) -> dict[str, Any] | None:
    """The content of a run's checkpoint, with its tensors on `device`, or None if there is no file.

    Raises InputError for a file that can't be read, has another format, or belongs to a run of another `identity`
    (JSON); the message names the first difference.
    """
    if not file.is_file():
        return None
    try:
        content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        # A damaged file can make torch.load raise any error, and some of its messages advise loading without
        # `weights_only`, which could run code from the file.
        raise InputError(f"{file}: can't read the checkpoint; remove it to start again") from error
    stored_format = content.get("format") if isinstance(content, dict) else None
    if stored_format != FORMAT:
        raise InputError(f"{file}: format {stored_format!r}, this version writes {FORMAT}; start a new run")
    assert isinstance(content, dict)
    if content["identity"] != identity:
        changed = _first_difference(json.loads(content["identity"]), json.loads(identity))
        raise InputError(
            f"{file}: the run was started with another {changed}; resume with the same configuration and data, "
            "or give another --run"
        )
    return content


def _first_difference(stored: Any, given: Any, path: str = "") -> str:
    """The dotted name of the first value that differs between two nested mappings, with both values."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in given:
            if stored.get(key) != given[key]:
                return _first_difference(stored.get(key), given[key], f"{path}.{key}" if path else key)
    return f"{path} ({stored!r}, now {given!r})"
