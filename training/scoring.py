"""A network on a split, plain pictures, scores per level."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.console import Console

from protoserve.bundle import InputRule
from protoserve.dataset import Dataset
from protoserve.metrics import scores
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from training.pictures import batches, fitted
from training.progress import tracked


@torch.inference_mode()
def score_network(
    network: PrototypeNetwork | LinearNetwork,
    dataset: Dataset,
    rule: InputRule,
    device: torch.device,
    console: Console,
    *,
    batch: int = 32,
) -> dict[str, Any]:
    """`protoserve.metrics.scores` of a network, which must be in evaluation mode."""
    found = []
    with tracked(console, f"scoring {dataset.split}", len(dataset)) as advance:
        for numbers, pictures in batches(lambda n: fitted(dataset, n, rule).array, range(len(dataset)), batch):
            output = network(pictures.to(device))
            log_probability = output if isinstance(output, torch.Tensor) else output.log_probability
            found.append(log_probability.cpu().numpy())
            advance(len(numbers))
    return scores(np.concatenate(found), dataset.leaves, dataset.taxonomy)
