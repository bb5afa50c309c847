"""The forward pass of a network's frozen part, in onnxruntime where that pays.

On a CPU, onnxruntime folds batch norms and fuses layers: MobileNetV2's features take a third of PyTorch's time, those
of other convolutional networks less, too (benchmarks/results/frozen-features.md). Transformers are as fast in PyTorch,
which also computes everything on a GPU.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from protoserve.errors import DeviceError, InputError
from protoserve.inference.engine import RUNTIME_ERRORS
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from training.features.trunk import Cut, TiledCut
from training.sections.network import Engine

# `auto` uses onnxruntime for at least so many pictures; writing the graph takes a second.
WORTH_IMAGES = 200
# The largest difference from PyTorch's features, as a share of the largest feature.
TOLERANCE = 1e-4
_OPSET = 18
_ERRORS: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, ImportError, torch.onnx.OnnxExporterError)


class PictureFeatures(nn.Module):
    """Pictures uint8 [N, H, W, 3] → `network.features`."""

    def __init__(self, network: PrototypeNetwork | LinearNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network.features(pictures)


class BackboneMaps(nn.Module):
    """Pictures uint8 [N, H, W, 3] → the backbone's feature maps."""

    def __init__(self, network: PrototypeNetwork | LinearNetwork) -> None:
        super().__init__()
        self.normalise, self.backbone = network.normalise, network.backbone

    def forward(self, pictures: Tensor) -> Tensor:
        maps: Tensor = self.backbone(self.normalise(pictures))
        return maps


class TrunkMaps(nn.Module):
    """Pictures uint8 [N, H, W, 3] → the output of the trunk."""

    def __init__(self, network: PrototypeNetwork | LinearNetwork, cut: Cut | TiledCut) -> None:
        super().__init__()
        self.normalise, self.trunk = network.normalise, cut.trunk

    def forward(self, pictures: Tensor) -> Tensor:
        maps: Tensor = self.trunk(self.normalise(pictures))
        return maps


class TopFeatures(nn.Module):
    """The output of the trunk → `network.features`."""

    def __init__(self, network: PrototypeNetwork | LinearNetwork, cut: Cut | TiledCut) -> None:
        super().__init__()
        self.network, self.top = network, cut.top

    def forward(self, maps: Tensor) -> Tensor:
        return self.network.from_maps(self.top(maps))


def uses_onnxruntime(engine: Engine, part: nn.Module, images: int, device: torch.device) -> bool:
    """Whether onnxruntime computes a part of a network for so many images. `auto` lets it on a CPU, from `WORTH_IMAGES`
    on, where kernels slide over the picture: the patches of a transformer do not overlap.

    Raises DeviceError for `onnxruntime` on another device than the CPU.
    """
    if engine == "onnxruntime" and device.type != "cpu":
        raise DeviceError(f"features: onnxruntime computes on the CPU, not on {device}; set it to auto or torch")
    if engine != "auto":
        return engine == "onnxruntime"
    return device.type == "cpu" and images >= WORTH_IMAGES and any(map(_slides, part.modules()))


def _slides(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > layer.stride[0]


def frozen_forward(
    part: nn.Module, images: int, engine: Engine, device: torch.device, console: Console
) -> Callable[[Tensor], Tensor]:
    """Return a function that computes `part` for batches of `images` images in all, without gradients.

    With the first batch, onnxruntime's outputs are compared with PyTorch's. If they differ by more than `TOLERANCE`, or
    the part can't be written as ONNX, `auto` prints a note and goes on with PyTorch; `onnxruntime` raises InputError.
    Weights that change later don't count.
    """
    if not uses_onnxruntime(engine, part, images, device):
        return part
    chosen: Callable[[Tensor], Tensor] | None = None

    def forward(batch: Tensor) -> Tensor:
        nonlocal chosen
        if chosen is None:
            chosen = _checked(part, batch, engine, console)
        return chosen(batch)

    return forward


@torch.inference_mode()
def _checked(part: nn.Module, batch: Tensor, engine: Engine, console: Console) -> Callable[[Tensor], Tensor]:
    """Return `part` in onnxruntime if it computes the same for `batch`, else `part` itself."""
    frozen = copy.deepcopy(part).eval()
    try:
        run = _session(frozen, batch)
        expected, found = frozen(batch), run(batch)
        allowed = TOLERANCE * float(expected.abs().max())
        if (difference := float((expected - found).abs().max())) <= allowed:
            return run
        reason = f"its features differ by {difference:.2g}, more than {allowed:.2g}"
    except _ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if engine == "onnxruntime":
        raise InputError(f"features: onnxruntime can't compute them ({reason}); set features to auto or torch")
    console.print(f"note: PyTorch computes the features, not onnxruntime ({reason})", markup=False, soft_wrap=True)
    return part


def _session(part: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Write a module in evaluation mode as ONNX and open it with as many threads as torch uses."""
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("the package onnx is not installed; pip install 'protoserve[train]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # Threads that decode pictures need the cores meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frozen.onnx"
        _write(part, example[:2], file)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        output: Any = session.run(None, {"x": np.ascontiguousarray(batch.numpy())})[0]
        return torch.from_numpy(output)

    return run


def _write(part: nn.Module, example: Tensor, file: Path) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        # The exporter that traces is deprecated. The one that replaces it takes 13 s for MobileNetV2 instead of half a
        # second: as long as onnxruntime saves on 800 pictures.
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                part,
                (example,),
                file,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
                dynamo=False,
                opset_version=_OPSET,
            )
        finally:
            logger.setLevel(level)
