"""A step of training a backbone in several precisions, side by side: time, and how far the features differ."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.head.cost import in_turns
from protoserve.errors import DeviceError
from protoserve.networks.backbones import backbone
from training.features.precision import Learning, learning_forward

# Training with `precision` and `compile` as in the configuration; the first side is what the others are compared with.
SIDES: Final[dict[str, Learning]] = {
    "float32": Learning(precision="float32", compile=False),
    "bfloat16": Learning(precision="bfloat16", compile=False),
    "float16": Learning(precision="float16", compile=False),
    "float32, compiled": Learning(precision="float32", compile=True),
    "bfloat16, compiled": Learning(precision="bfloat16", compile=True),
}
BATCHES: Final = (32, 128)
ROUNDS: Final = 10


def timed(
    name: str, device: torch.device, size: int, batches: Sequence[int], rounds: int, sides: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """For each batch size, the median milliseconds of a step (forward and backward of the backbone `name` with random
    weights, on pictures of `size` × `size` pixels), measured in turns, its time over float32's, and the difference of
    the feature maps, relative to their deviation. Returns the rows, and why each side that is missing failed."""
    torch.manual_seed(0)
    body = backbone(name).to(device).train()
    forwards: dict[str, Callable[[Tensor], Tensor]] = {}
    missing: dict[str, str] = {}
    for side in sides:
        try:
            forward = learning_forward(body, SIDES[side], device)
            _step(forward, torch.rand(2, 3, size, size, device=device))
        # A compiler or a kernel that is missing raises errors of many kinds.
        except (DeviceError, RuntimeError, NotImplementedError) as error:
            missing[side] = str(error).splitlines()[0]
        else:
            forwards[side] = forward
    rows = []
    for batch in batches:
        pictures = torch.rand(batch, 3, size, size, device=device)
        with torch.no_grad():
            maps = {side: forward(pictures) for side, forward in forwards.items()}
        exact = maps[sides[0]]
        tasks = {side: _task(forward, pictures) for side, forward in forwards.items()}
        medians = {side: statistics.median(seconds) for side, seconds in in_turns(tasks, rounds).items()}
        rows += [
            {
                "side": side,
                "batch": batch,
                "ms": 1e3 * seconds,
                "of_first": seconds / medians[sides[0]],
                "difference": float((maps[side] - exact).abs().mean() / exact.std()),
            }
            for side, seconds in medians.items()
        ]
    return rows, missing


def _task(forward: Callable[[Tensor], Tensor], pictures: Tensor) -> Callable[[], None]:
    return lambda: _step(forward, pictures)


def _step(forward: Callable[[Tensor], Tensor], pictures: Tensor) -> None:
    """One forward and backward pass, ended before it returns."""
    forward(pictures).square().mean().backward()
    if pictures.is_cuda:
        torch.cuda.synchronize(pictures.device)
