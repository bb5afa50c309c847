"""The network's own answers to the pictures of the parity gate, computed once for all targets and batch sizes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.graph_signature import named_arrays
from protoserve.networks.fused_head import explain
from protoserve.networks.model_file import ExplainedNetwork


class NetworkAnswers:
    """Answers of a `network` on the CPU, with `top_k` pieces of evidence per level; it keeps them by picture."""

    def __init__(self, network: ExplainedNetwork, top_k: int) -> None:
        self.network = network
        self.top_k = top_k
        self._kept: dict[bytes, tuple[dict[str, NDArray[Any]], Tensor]] = {}

    def of(self, pictures: NDArray[np.uint8]) -> tuple[dict[str, NDArray[Any]], Tensor]:
        """Return the outputs by name and the latent map [N, D, rows, columns] of pictures uint8 [N, H, W, 3]."""
        keys = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
        new = {key: place for place, key in enumerate(keys) if key not in self._kept}
        if new:
            with torch.inference_mode():
                batch = torch.from_numpy(np.ascontiguousarray(pictures[list(new.values())]))
                latent = self.network.latent(self.network.features(batch))
                explained = explain(self.network.head, latent, self.top_k)
            outputs = {name: tensor.numpy() for name, tensor in named_arrays(explained).items()}
            for row, key in enumerate(new):
                self._kept[key] = {name: array[row] for name, array in outputs.items()}, latent[row]
        found = [self._kept[key] for key in keys]
        arrays = {name: np.stack([outputs[name] for outputs, _ in found]) for name in found[0][0]}
        return arrays, torch.stack([latent for _, latent in found])
