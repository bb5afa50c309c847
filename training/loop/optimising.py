"""The optimiser, its learning rate, and the means over an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Averages:
    """Means of named numbers over the images of an epoch."""

    sums: dict[str, float]
    count: int = 0

    def add(self, values: dict[str, float], count: int) -> None:
        """Add `values`, each a mean over `count` images."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
        self.count += count

    def means(self) -> dict[str, float]:
        """The means over all images added so far."""
        return {name: total / max(1, self.count) for name, total in self.sums.items()}


def set_learning_rate(optimiser: torch.optim.Optimizer, progress: float, cosine: bool, warm_up: float = 0.0) -> None:
    """Set each group's rate: with `cosine`, decayed to 1 % of its initial rate as `progress` goes from 0 to 1; else
    its initial rate. Until `progress` is `warm_up`, it rises linearly from 5 % of that."""
    factor = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)) if cosine else 1.0
    if progress < warm_up:
        factor *= max(0.05, progress / warm_up)
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor


def adam(groups: list[tuple[list[nn.Parameter], float]], weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) over groups of (parameters, learning rate).

    `weight_decay` does not apply to vectors, that is, to biases and the scales of norms.
    """
    split_groups: list[dict[str, Any]] = []
    for parameters, rate in groups:
        vectors = [parameter for parameter in parameters if weight_decay > 0 and parameter.ndim <= 1]
        others = [parameter for parameter in parameters if weight_decay == 0 or parameter.ndim > 1]
        for part, decay in ((others, weight_decay), (vectors, 0.0)):
            if part:
                split_groups.append({"params": part, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(split_groups)
