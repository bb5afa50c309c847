"""Fits a group's last layer again on similarities: a convex problem, solved to its minimum.

For prototypes that were switched off or on, and for classes that were added: the layer should follow the pictures, and
stay as it was where they don't decide.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ITERATIONS = 200


def refit_layer(
    start: Tensor,
    similarity: Tensor,
    target: Tensor,
    ridge: float,
    *,
    share: Tensor | None = None,
    free: Tensor | None = None,
) -> Tensor:
    """Return the last layer [members, Q] that minimises mean cross-entropy + `ridge` · Σ change² · mean similarity².

    `start` [members, Q] is the layer to start from and to stay near. `similarity` [images, Q] are those of the images
    below the group's parent, and `target` int64 [images] their members; `share` float64 [images], of sum 1, weighs the
    images (by default all alike). Only the columns `free` bool [Q], or the weights `free` bool [members, Q], change (by
    default all).

    A weight's change counts by the mean squared similarity of its prototype, that is, by what it changes in the logits.
    The minimum is unique, and float64 finds it within the tolerance of the solver, whatever the order of the images.
    """
    first = start.detach().double().cpu()
    values = similarity.detach().double().cpu()
    weights = torch.full((len(values),), 1.0 / len(values), dtype=torch.float64) if share is None else share.double()
    entries = torch.ones(first.shape, dtype=torch.bool) if free is None else free.cpu().expand(first.shape)
    moving = entries.any(0)
    held, values = values[:, ~moving] @ first[:, ~moving].T, values[:, moving]
    mask = entries[:, moving].double()
    # Scaled, so that every direction has a similar curvature.
    scale = (weights[:, None] * values.square()).sum(0).clamp_min(1e-9).sqrt()
    change = torch.zeros((len(first), values.shape[1]), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [change], max_iter=ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits = values @ (first[:, moving] + change * mask / scale).T + held
        loss = (weights * functional.cross_entropy(logits, target, reduction="none")).sum()
        loss = loss + ridge * change.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    result = first.clone()
    result[:, moving] += change.detach() * mask / scale
    return result.to(start)
