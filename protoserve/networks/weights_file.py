"""Files of weights as people have them: whole classifiers, wrapped checkpoints, backbones without a head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from protoserve.errors import InputError, MissingExtraError

_LOG = logging.getLogger(__name__)

# Keys under which training scripts keep the state dict in a checkpoint, and prefixes that wrappers put before names.
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema", "ema", "weights")
_PREFIXES: Final = ("module.", "model.", "backbone.", "encoder.", "net.", "_orig_mod.")
# How many wrappers and prefixes may be around one another.
_DEPTH: Final = 3


@dataclass(frozen=True)
class FileWeights:
    """Tensors of a file by the model's names: those that fit it in name and shape, the names of others, and `found`,
    where in the file they were, empty for a plain state dict."""

    fitting: Mapping[str, Tensor]
    others: tuple[str, ...]
    found: str


Adapt = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def read_weights(file: Path, expected: Mapping[str, Tensor], adapt: Adapt | None = None) -> FileWeights:
    """Read a state dict, on its own or wrapped in a checkpoint, and match it with the model's tensors.

    Reads a file called `.safetensors` as such, others as `torch.save` writes them; nothing in the file is unpickled as
    code. `adapt` renames and resamples the tensors of a file that does not hold all those expected. Raises InputError
    for a file that can't be read or holds no tensors, and MissingExtraError without what reads it.
    """
    try:
        content = _safetensors(file) if file.suffix == ".safetensors" else _load(file)
    except MissingExtraError:
        raise
    except Exception as error:
        # A damaged file raises almost any type. The message leaves out torch's own, which recommends unpickling code.
        raise InputError(
            f"{file}: can't read the weights; give a state dict of tensors saved by torch.save, or .safetensors"
        ) from error
    if isinstance(content, dict) and {"format", "description", "state"} <= set(content):
        raise InputError(
            f"{file}: these are not weights of a backbone but a run's whole network; give the run's folder instead"
        )
    tensors, wrappers = _unwrapped(content)
    if not tensors:
        raise InputError(f"{file}: holds no tensors; give a state dict of tensors saved by torch.save")
    fitting, prefix = _stripped(tensors, expected, _DEPTH)
    if adapt is not None and set(fitting) != set(expected):
        renamed = adapt({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
        adapted, _ = _stripped(renamed, expected, 0)
        if len(adapted) > len(fitting):
            fitting, tensors, prefix = adapted, dict(renamed), ""
    others = tuple(name for name in tensors if name.removeprefix(prefix) not in fitting)
    places = [f"under {wrappers!r}"] if wrappers else []
    places += [f"after {prefix!r}"] if prefix else []
    return FileWeights(fitting, others, " ".join(places))


def note(file: Path, name: str, weights: FileWeights) -> str:
    """Say what was taken from a file that is not exactly a state dict of the classifier; empty if it is."""
    if not weights.found and not weights.others:
        return ""
    where = f", found {weights.found}" if weights.found else ""
    shown = ", ".join(weights.others[:3]) + (f" and {len(weights.others) - 3} more" if len(weights.others) > 3 else "")
    left = f"; left out {shown}" if shown else ""
    return f"{file}: took the backbone of {name}{where}{left}"


def check_weights(file: Path, name: str, model: nn.Module, body: nn.Module, given: FileWeights) -> None:
    """Raise InputError if a file lacks tensors of the backbone, else say in the log what was taken from it."""
    # Tracing adds constants; and many files lack the counters of batch normalisation, which only training reads.
    own = [key for key in body.state_dict() if key in model.state_dict() and not key.endswith("num_batches_tracked")]
    if missing := [key for key in own if key not in given.fitting]:
        raise InputError(
            f"{file}: these are not weights of {name}: {len(missing)} of its {len(own)} tensors are missing or have "
            f"another shape, the first {missing[0]!r}; give weights of {name}, or --weights none for random ones"
        )
    if told := note(file, name, given):
        _LOG.warning("%s", told)


def _load(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{file}: reading .safetensors", "timm") from error
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def _unwrapped(content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a checkpoint and the keys that they were under."""
    keys: list[str] = []
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping) or any(isinstance(value, Tensor) for value in content.values()):
            break
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        keys.append(key)
        content = content[key]
    if not isinstance(content, Mapping):
        return {}, ""
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, ".".join(keys)


def _stripped(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], depth: int) -> tuple[dict[str, Tensor], str]:
    """Return the tensors that fit after removing the prefix with which most do, and that prefix."""
    fitting = {
        name: tensor for name, tensor in state.items() if name in expected and tensor.shape == expected[name].shape
    }
    best = fitting, ""
    for prefix in _PREFIXES if depth else ():
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inner:
            found, more = _stripped(inner, expected, depth - 1)
            if len(found) > len(best[0]):
                best = found, prefix + more
    return best
