"""Gradients of a bundle's similarities, from the network of its run, for the audit's attack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle_network import network_of_bundle
from protoserve.bundle.folder import Bundle
from protoserve.device import Device
from protoserve.networks.device import torch_device
from protoserve.networks.model_file import ExplainedNetwork
from protoserve.run.folder import open_run


@dataclass(frozen=True)
class NetworkGradients:
    """A `network` on a `device`; its weights do not change."""

    network: ExplainedNetwork
    device: torch.device

    def distance_gradient(
        self, images: NDArray[np.float32], prototypes: NDArray[np.int64], cells: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the gradient [N, height, width, 3] of the squared distance between a cell of every image and a
        prototype, as `protoserve.audit.attack.SupportsGradient` says."""
        pixels = torch.from_numpy(images).to(self.device).requires_grad_(True)
        latent = self.network.latent(self.network.features(pixels)).flatten(2)
        places = torch.arange(len(images), device=self.device)
        vectors = self.network.head.vectors()[torch.from_numpy(prototypes).to(self.device)]
        distance = (latent[places, :, torch.from_numpy(cells).to(self.device)] - vectors).square().sum()
        (gradient,) = torch.autograd.grad(distance, pixels)
        found: NDArray[Any] = gradient.cpu().numpy()
        return found


def open_gradients(bundle: Bundle, run: Path, device: Device = "auto") -> NetworkGradients:
    """Load the network of the `run` that a bundle was exported from, with the bundle's own last layers.

    Raises InputError if the bundle was not exported from this run, DeviceError for a device that can't be used.
    """
    chosen = torch_device(device)
    network = network_of_bundle(bundle, open_run(run)).network
    return NetworkGradients(network.to(chosen).requires_grad_(False), chosen)
