"""From a configuration to the network it asks for, and the parts of a backbone that learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from protoserve.dataset import Dataset
from protoserve.errors import InputError, nearest
from protoserve.networks.checkpoint import NetworkDescription
from protoserve.networks.head import prototype_children
from training.config import Config


def describe(config: Config, dataset: Dataset, linear: bool) -> NetworkDescription:
    """The network that a configuration asks for on a data set's taxonomy."""
    model, taxonomy = config.model, dataset.taxonomy
    common: dict[str, Any] = {
        "taxonomy": taxonomy.to_dict(),
        "input": config.image,
        "backbone": model.backbone,
        "stride": model.stride,
        "dropout": model.dropout,
    }
    if linear:
        return NetworkDescription(kind="linear", **common)
    return NetworkDescription(
        kind=model.kind,
        reduced=model.reduced,
        dimensions=model.dimensions,
        similarity=model.similarity,
        epsilon=model.epsilon,
        prototype_child=prototype_children(taxonomy, model.kind, model.prototypes_per_child, model.inner_factor),
        **common,
    )


@torch.inference_mode()
def check_picture_size(backbone: nn.Module, config: Config, device: torch.device) -> None:
    """Raise InputError where the configured pictures are too small for the backbone."""
    height, width = config.image.height, config.image.width
    try:
        backbone(torch.zeros(1, 3, height, width, device=device))
    except RuntimeError as error:
        raise InputError(
            f"image: {config.model.backbone!r} has no feature map of {height} × {width} pixels ({error}); "
            "raise image.height and image.width"
        ) from error


def learning_parts(body: nn.Module, train_from: str | None) -> list[nn.Module]:
    """The leaf modules of a backbone, in order, from the one named `train_from` on."""
    parts = [(name, part) for name, part in body.named_modules() if not list(part.children())]
    if train_from is None:
        return [part for _, part in parts]
    for number, (name, _) in enumerate(parts):
        if name == train_from or name.startswith(f"{train_from}."):
            return [part for _, part in parts[number:]]
    top = sorted({".".join(name.split(".")[:2]) for name, _ in parts})
    raise InputError(
        f"finetune.train_from: the backbone has no part {train_from!r}{nearest(train_from, top)}; "
        f"it has {', '.join(top)}"
    )
