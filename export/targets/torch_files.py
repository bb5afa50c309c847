"""Targets for libtorch: TorchScript and torch.export."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.parity import Runtime
from protoserve.graph_signature import OUTPUT_NAMES


def run_torchscript(file: Path) -> Runtime:
    """Open a TorchScript file in libtorch on the CPU."""
    with warnings.catch_warnings():
        # torch has deprecated TorchScript; the target stays for hosts that still use it.
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(file), map_location="cpu")
    return _runtime(module)


def run_torch_export(file: Path) -> Runtime:
    """Open a torch.export file in libtorch on the CPU."""
    return _runtime(torch.export.load(str(file)).module())


def _runtime(module: torch.nn.Module) -> Runtime:
    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(pictures))
        return {name: output.numpy() for name, output in zip(OUTPUT_NAMES, outputs, strict=True)}

    return run


def write_torch_export(
    graph: torch.nn.Module, example: Tensor, dynamic: Mapping[int, Any], file: Path, metadata: dict[str, str]
) -> None:
    """Write the graph as a torch.export file (.pt2); each entry of `metadata` becomes an extra file inside it.

    `dynamic` maps each dynamic axis of the input to its `torch.export.Dim`.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, (example,), dynamic_shapes=(dict(dynamic),), strict=False)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=metadata)
    file.write_bytes(buffer.getvalue())
