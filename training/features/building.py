"""Build the network of a configuration, and find the parts of its backbone that learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from protoserve.errors import InputError, nearest
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import code_size
from protoserve.networks.backbones import Backbone, statistics_of
from protoserve.networks.head import prototype_children
from protoserve.networks.model_file import Network, NetworkDescription, build, build_autoencoder
from protoserve.networks.statistics import IMAGENET
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.sections.network import AutoencoderConfig, ModelConfig


def describe(
    model: ModelConfig, rule: InputRule, taxonomy: Taxonomy, prototypes_per_child: int, linear: bool
) -> NetworkDescription:
    """Describe the network of a configuration for a taxonomy, with a linear head instead of prototypes if `linear`."""
    statistics = statistics_of(model.backbone, model.weights)
    common: dict[str, Any] = {
        "taxonomy": taxonomy.to_dict(),
        "input": rule,
        "backbone": model.backbone,
        # Descriptions of earlier versions have none, so that equal networks stay equal.
        "statistics": None if statistics == IMAGENET else statistics,
        "stride": model.stride,
        "tile": model.tile,
        "tile_step": model.tile_step,
        "receptive_field": model.receptive_field,
        "dropout": model.dropout,
    }
    if linear:
        return NetworkDescription(kind="linear", **common)
    assert model.kind != "autoencoder"
    return NetworkDescription(
        kind=model.kind,
        reduced=model.reduced,
        dimensions=model.dimensions,
        similarity=model.similarity,
        latent=model.latent,
        smoothing=model.smoothing,
        hidden=model.hidden,
        zero=model.zero,
        epsilon=model.epsilon,
        prototype_child=prototype_children(taxonomy, model.kind, prototypes_per_child, model.inner_factor),
        **common,
    )


def describe_autoencoder(setting: AutoencoderConfig, rule: InputRule, taxonomy: Taxonomy) -> NetworkDescription:
    """Describe the autoencoder of a configuration for a taxonomy.

    Prototypes are first assigned to the leaves in turn; the stage `assign` replaces this by the learned leaves.
    """
    leaves = taxonomy.leaves
    return NetworkDescription(
        kind="autoencoder",
        taxonomy=taxonomy.to_dict(),
        input=rule,
        dimensions=code_size(setting.channels, rule.height, rule.width),
        similarity="negative-distance",
        epsilon=0.0,
        prototype_child=sorted(leaves[prototype % len(leaves)] for prototype in range(setting.prototypes)),
        channels=list(setting.channels),
        grey=setting.grey,
    )


def new_network(
    config: Config, taxonomy: Taxonomy, linear: bool, device: torch.device
) -> tuple[NetworkDescription, Network]:
    """The network of a configuration with its initial weights, in evaluation mode.

    Raises InputError if the configured pictures are too small for the backbone.
    """
    if config.model.kind == "autoencoder":
        description = describe_autoencoder(config.autoencoder, config.image, taxonomy)
        return description, build_autoencoder(description).to(device).eval()
    per_child = config.prototypes.start if config.prototypes.auto else config.model.prototypes_per_child
    description = describe(config.model, config.image, taxonomy, per_child, linear)
    network = build(description, config.model.weights).to(device).eval()
    check_picture_size(network.backbone, config.image, device)
    return description, network


def build_any(description: NetworkDescription) -> Network:
    """A network of any kind from its description, with random weights."""
    return build_autoencoder(description) if description.kind == "autoencoder" else build(description)


@torch.inference_mode()
def check_picture_size(backbone: Backbone, rule: InputRule, device: torch.device) -> None:
    """Raise InputError if pictures of the size that `rule` gives are too small for the backbone."""
    height, width = rule.height, rule.width
    try:
        backbone(torch.zeros(1, 3, height, width, device=device))
    except RuntimeError as error:
        raise InputError(
            f"image: pictures of {height} × {width} pixels are too small for {backbone.name!r} ({error}); "
            "raise image.height and image.width"
        ) from error


def trainable_parts(body: nn.Module, train_from: str | None) -> dict[str, nn.Module | nn.Parameter]:
    """The parts of a backbone that learn, by name and in order, from `train_from` on (None: all).

    These are the modules without children, batch norms, and the parameters that larger modules own themselves. Raises
    InputError for an unknown name, with the names that the backbone has.
    """
    # timm's batch norms hold their activation.
    parts = [
        (name, part)
        for name, part in body.named_modules()
        if isinstance(part, nn.BatchNorm2d) or not list(part.children())
    ]
    if train_from is None:
        first = 0
    else:
        prefix = f"{train_from}."
        matches = (index for index, (name, _) in enumerate(parts) if name == train_from or name.startswith(prefix))
        first = next(matches, -1)
        if first < 0:
            top = sorted({block_of(name) for name, _ in parts})
            raise InputError(
                f"finetune.train_from: the backbone has no part {train_from!r}{nearest(train_from, top)}; "
                f"it has {', '.join(top)}, or null for all of it"
            )
    learning: dict[str, nn.Module | nn.Parameter] = dict(parts[first:])
    blocks = {block_of(name) for name in learning}
    leaves = {name for name, _ in parts}
    for name, parameter in body.named_parameters():
        if name.rpartition(".")[0] not in leaves and (train_from is None or block_of(name) in blocks):
            learning[name] = parameter
    return learning


def block_of(name: str) -> str:
    """The block of a backbone that a part or parameter belongs to: its name up to the first component with a digit,
    such as `features.14` or `layer4`, or else its first two components."""
    names = name.split(".")
    numbered = [index for index, part in enumerate(names) if any(letter.isdigit() for letter in part)]
    return ".".join(names[: numbered[0] + 1 if numbered else 2])


def trainable_modules(body: nn.Module, train_from: str | None) -> list[nn.Module]:
    """The modules without children of a backbone that learn, in order, from `train_from` on."""
    return [part for part in trainable_parts(body, train_from).values() if isinstance(part, nn.Module)]


def trainable_parameters(body: nn.Module, train_from: str | None) -> list[nn.Parameter]:
    """The parameters of a backbone that learn, in order, from `train_from` on."""
    parameters: list[nn.Parameter] = []
    for part in trainable_parts(body, train_from).values():
        parameters += [part] if isinstance(part, nn.Parameter) else part.parameters(recurse=False)
    return parameters


def freeze_all_but(backbone: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze a backbone except for these parameters."""
    backbone.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
