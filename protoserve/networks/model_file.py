"""Checkpoints: a network's description and weights in one file, written atomically, read without unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import Field, ValidationError

from protoserve.errors import InputError
from protoserve.files import new_file
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.backbones import Backbone, backbone, in_tiles, with_receptive_field
from protoserve.networks.head import PrototypeHead
from protoserve.networks.network import Latent, LinearNetwork, PrototypeNetwork
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.networks.statistics import IMAGENET, Statistics
from protoserve.schema import Box, Contract
from protoserve.taxonomy import Kind, Taxonomy

FORMAT = 1
Colour: TypeAlias = tuple[float, float, float]
# A network with prototypes, and any network that a checkpoint may hold.
ExplainedNetwork: TypeAlias = PrototypeNetwork | PrototypeAutoencoder
Network: TypeAlias = ExplainedNetwork | LinearNetwork


class NetworkDescription(Contract):
    """Everything needed to rebuild a network, except its weights."""

    kind: Kind
    taxonomy: dict[str, Any]
    input: InputRule
    backbone: str = Field(default="", description="empty for an autoencoder, which has an encoder of its own")
    statistics: tuple[Colour, Colour] | None = Field(
        default=None, description="mean and standard deviation that normalise pictures; null: those of ImageNet"
    )
    stride: int | None = None
    reduced: int | None = None
    dimensions: int = Field(default=0, ge=0)
    similarity: SimilarityForm = "log1p"
    latent: Latent = "sigmoid"
    smoothing: int = Field(default=1, ge=1)
    tile: int | None = Field(default=None, ge=1, description="side of the tiles that the backbone sees, in pixels")
    tile_step: int | None = Field(default=None, ge=1, description="pixels from tile to tile; null: `tile`")
    receptive_field: int | None = Field(default=None, ge=1, description="most pixels that a cell sees, across")
    hidden: int | None = None
    zero: float | None = None
    epsilon: float = 1e-4
    dropout: float = 0.0
    prototype_child: list[int] = Field(default_factory=list)
    channels: list[int] = Field(default_factory=list, description="maps of an autoencoder's layers")
    grey: bool = Field(default=True, description="whether an autoencoder reads one grey plane")

    def formula(self) -> Similarity:
        """Return the similarity of the network's prototypes."""
        return Similarity(self.similarity, self.epsilon, self.zero)

    def colours(self) -> Statistics:
        """Return the statistics that normalise pictures."""
        return IMAGENET if self.statistics is None else Statistics(*self.statistics)


class PrototypeSource(Contract):
    """The training patch that a prototype was projected to.

    `image` is an image of the training split and `cell` (row · columns + column) a cell of its feature map, whose `box`
    is in the image's pixels. `distance` is the prototype's squared distance to the cell before projection.
    """

    image: str
    cell: int
    rows: int
    columns: int
    box: Box
    distance: float


def build(description: NetworkDescription, weights: str | Path | None = None) -> PrototypeNetwork | LinearNetwork:
    """Build the network of a description that is not an autoencoder's.

    `weights` initialise the backbone: any value that `backbone` takes (None: random), or the folder of a finished run,
    whose backbone is copied.

    Raises InputError if that run has another backbone or one that ends at a smaller stride, and as `backbone` and
    `in_tiles` do.
    """
    assert description.kind != "autoencoder"
    taxonomy = Taxonomy.from_dict(description.taxonomy)
    from_run = weights is not None and Path(weights).is_dir()
    rule, tile = description.input, description.tile
    body = backbone(
        description.backbone,
        None if from_run else weights,
        description.stride,
        size=(rule.height, rule.width) if tile is None else (tile, tile),
        statistics=description.colours(),
    )
    if description.receptive_field is not None:
        body = with_receptive_field(body, description.receptive_field, description.tile_step)
    if weights is not None and from_run:
        _copy_backbone(Path(weights), body, description)
    if tile is not None:
        body = in_tiles(body, tile, description.tile_step, rule.height, rule.width)
    if description.kind == "linear":
        return LinearNetwork(body, taxonomy, description.dropout)
    head = PrototypeHead(
        taxonomy,
        description.prototype_child,
        description.dimensions,
        kind=description.kind,
        similarity=description.formula(),
        unit_length=description.latent == "sphere",
    )
    return PrototypeNetwork(
        body, head, description.reduced, description.dropout, description.smoothing, description.hidden
    )


def _copy_backbone(run: Path, body: Backbone, description: NetworkDescription) -> None:
    """Copy the weights of the run's backbone into `body`."""
    network, source, _ = load_network(run / "model.pt")
    if isinstance(network, PrototypeAutoencoder) or source.backbone != description.backbone:
        own = source.backbone or "an encoder of its own"
        raise InputError(f"{run}: this run's backbone is {own}, not {description.backbone}; name the same in both")
    if source.colours() != description.colours():
        raise InputError(
            f"{run}: this run normalises pictures by {source.colours()}, not {description.colours()}; name the tag of "
            f"its weights in model.backbone, as in {source.backbone}.TAG"
        )
    state = network.backbone.state_dict()
    if missing := sorted(set(body.state_dict()) - set(state)):
        raise InputError(
            f"{run}: its backbone stops at stride {network.backbone.stride} and lacks {missing[0]}; use the same stride"
        )
    try:
        body.load_state_dict({name: state[name] for name in body.state_dict()})
    except RuntimeError as error:
        raise InputError(
            f"{run}: its backbone has a receptive field of {source.receptive_field}, not "
            f"{description.receptive_field}; use the same"
        ) from error


def build_autoencoder(description: NetworkDescription) -> PrototypeAutoencoder:
    """Build the autoencoder of a description, with random weights."""
    head = PrototypeHead(
        Taxonomy.from_dict(description.taxonomy),
        description.prototype_child,
        description.dimensions,
        kind="flat",
        similarity=description.formula(),
    )
    rule = description.input
    return PrototypeAutoencoder(description.channels, rule.height, rule.width, head, grey=description.grey)


def save_whole(content: Mapping[str, Any], file: Path) -> None:
    """Write `content` with `torch.save`, atomically and durably."""
    # Given a path, torch would write the temporary file's name into the file.
    with new_file(file, durable=True) as draft, draft.open("wb") as stream:
        torch.save(dict(content), stream)


def save_network(
    file: Path,
    network: Network,
    description: NetworkDescription,
    sources: list[PrototypeSource] | None = None,
) -> None:
    """Write a network and, if its prototypes have been projected, their `sources` (one per prototype)."""
    save_whole(
        {
            "format": FORMAT,
            "description": description.model_dump_json(),
            "sources": None if sources is None else [source.model_dump_json() for source in sources],
            "state": network.state_dict(),
        },
        file,
    )


def load_network(
    file: Path,
) -> tuple[Network, NetworkDescription, list[PrototypeSource] | None]:
    """Read a file of `save_network`: the network in evaluation mode on the CPU, its description and its sources.

    Raises InputError if the file is missing, damaged, not a checkpoint of ProtoServe or newer than this version.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint; train first, or give the run's folder")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file raises almost any type. The message leaves out torch's own, which recommends unpickling code.
        raise InputError(
            f"{file}: can't read the checkpoint, it is damaged or torch did not write it; train again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise InputError(f"{file}: not a checkpoint of ProtoServe; give a run's model.pt")
    if content["format"] > FORMAT:
        raise InputError(
            f"{file}: format {content['format']} is newer than {FORMAT}, the newest that this version reads; update it"
        )
    try:
        description = NetworkDescription.model_validate_json(content["description"])
        stored = content["sources"]
        sources = None if stored is None else [PrototypeSource.model_validate_json(source) for source in stored]
        network: Network = build_autoencoder(description) if description.kind == "autoencoder" else build(description)
        state = content["state"]
        if isinstance(network, LinearNetwork):
            # Version 0.1 did not calibrate linear networks.
            state.setdefault("temperature", torch.ones(1))
        else:
            # Runs before format 2 of bundles did not measure the usual similarities; 0 says so.
            state.setdefault("head.usual", torch.zeros(len(network.head.prototypes)))
        network.load_state_dict(state)
    except (KeyError, ValidationError, RuntimeError) as error:
        raise InputError(f"{file}: the checkpoint does not fit this version: {str(error)[:300]}") from error
    return network.eval(), description, sources
