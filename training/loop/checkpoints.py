"""Reading the checkpoint that an unfinished run goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from protoserve.errors import InputError

CHECKPOINT = "checkpoint.pt"


def read_checkpoint(file: Path, wanted: int, identity: str, device: torch.device) -> dict[str, Any] | None:
    """What `save_whole` wrote into a run's checkpoint, or None where there is none yet.

    Raises InputError for a file that can't be read, is not of the format `wanted`, or belongs to a run of another
    `identity` (JSON), naming the first difference.
    """
    if not file.is_file():
        return None
    try:
        content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        # torch.load raises whatever the file's bytes provoke, and advises to run code from it.
        raise InputError(f"{file}: can't read the checkpoint; remove it to start again") from error
    stored_format = content.get("format") if isinstance(content, dict) else None
    if stored_format != wanted:
        raise InputError(f"{file}: format {stored_format!r}, this version writes {wanted}; start a new run")
    assert isinstance(content, dict)
    if content["identity"] != identity:
        changed = _first_difference(json.loads(content["identity"]), json.loads(identity))
        raise InputError(
            f"{file}: the run was started with another {changed}; resume with the same configuration and data, "
            "or give another --run"
        )
    return content


def _first_difference(stored: Any, given: Any, place: str = "") -> str:
    """The dotted name of the first value in which two nested mappings differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in given:
            if stored.get(key) != given[key]:
                return _first_difference(stored.get(key), given[key], f"{place}.{key}" if place else key)
    return f"{place} ({stored!r}, now {given!r})"
