"""Fit a group's last layer again on similarities: a convex problem, solved to its minimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ITERATIONS = 200


@dataclass(frozen=True)
class RefitSetting:
    """How strongly a refit is held to the weights that it starts from (`ridge`), and how much a class of few pictures
    counts: its images weigh (images of a mean class / its images) ** `balance`.

    The defaults favour the recall of new classes; they come from a short search on held-out photographs of three
    classes of one data set (`python -m benchmarks.accuracy.extending --choose`).
    """

    ridge: float = 0.001
    balance: float = 0.5


@dataclass(frozen=True)
class Rows:
    """The pictures below a group's parent: `similarity` float32 [images, Q] to the group's prototypes, and `target`
    int64 [images], their members."""

    similarity: NDArray[np.float32]
    target: NDArray[np.int64]


def image_weights(target: NDArray[np.int64], balanced: NDArray[np.bool_], balance: float) -> NDArray[np.float64]:
    """Return the weight of each image, float64 [images], 1 but for images of `balanced` members (bool [members]) that
    have fewer images than a mean member."""
    counts = np.bincount(target, minlength=len(balanced)).astype(np.float64)
    mean = counts[counts > 0].mean()
    weight = np.where(balanced & (counts > 0), np.maximum(mean / np.maximum(counts, 1), 1.0) ** balance, 1.0)
    return np.asarray(weight[target])


def refit(start: Tensor, rows: Rows, weight: NDArray[np.float64], ridge: float) -> Tensor:
    """Return the last layer [M, Q] that minimises the weighted mean cross-entropy + `ridge` · mean squared change.

    `start` [M, Q] is the layer to start from and to stay near. A weight's change counts by the mean squared similarity
    of its prototype, that is, by what it changes in the logits. The minimum is unique, and float64 finds it within the
    tolerance of the solver, whatever the order of the images.
    """
    first = start.detach().double().cpu()
    similarity = torch.from_numpy(rows.similarity).double()
    target, share = torch.from_numpy(rows.target), torch.from_numpy(weight / weight.sum())
    scale = (share[:, None] * similarity.square()).sum(0).clamp_min(1e-9)
    change = torch.zeros_like(first, requires_grad=True)
    solver = torch.optim.LBFGS(
        [change], max_iter=ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        # Scaled, so that every direction has a similar curvature.
        logits = similarity @ (first + change / scale.sqrt()).T
        loss = (share * torch.nn.functional.cross_entropy(logits, target, reduction="none")).sum()
        loss = loss + ridge * change.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return (first + change.detach() / scale.sqrt()).to(start)
