"""Any classification model of torchvision or timm by name, cut before its pooling; running it once gives channels and
stride.

torchvision's `create_feature_extractor` cuts at a node that the caller names. This module finds the node by the shapes
of all outputs and turns tokens into a map. The result is one graph with one output. The library's extractor returns a
dictionary and has a second graph for training; export and the cut for fine-tuning would have to find the map in both.
"""

from __future__ import annotations

import math
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, fx, nn

from protoserve.errors import InputError, nearest
from protoserve.images.geometry import tile_grid
from protoserve.networks.receptive_field import ReceptiveField, limit
from protoserve.networks.statistics import IMAGENET, Statistics
from protoserve.networks.tiles import Tiles, mean_cells, on_tiles
from protoserve.networks.timm_models import is_timm, timm_body, timm_reference, timm_statistics
from protoserve.networks.weights_file import FileWeights, check_weights, read_weights
from protoserve.run.provenance import BackboneReference

# Picture sizes in pixels. A feature map grows with the picture; the output of an adaptive pool does not.
SMALL, LARGE = 224, 320


class Backbone(nn.Module):
    """A feature extractor.

    `channels` is the width of its feature map, `stride` the pixels per cell (rounded), `name` torchvision's name, or
    timm's after `timm/`. `statistics` are those that its pictures are normalised with.
    With `tiles` (see `in_tiles`), it sees each tile of a picture alone, and a cell is the mean over a tile's map.
    `field` is what a cell sees of the picture, and nothing else; None without tiles or a limited receptive field.
    `forward`: normalised pictures float32 [batch, 3, height, width] → feature maps [batch, channels, rows, columns].
    """

    def __init__(
        self,
        name: str,
        body: fx.GraphModule,
        channels: int,
        stride: int,
        tiles: Tiles | None = None,
        field: ReceptiveField | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.channels = channels
        self.stride = stride
        self.tiles = tiles
        self.statistics = statistics
        self.field = field if tiles is None else ReceptiveField(tiles.tile, tiles.step, 0)

    def forward(self, pictures: Tensor) -> Tensor:
        if self.tiles is None:
            features: Tensor = self.body(pictures)
            return features
        return mean_cells(on_tiles(self.body, self.tiles.cut(pictures)))


def names() -> list[str]:
    """Return the names that `backbone` takes without a prefix: torchvision's classification models."""
    models: list[str] = torchvision.models.list_models(module=torchvision.models)
    return models


def statistics_of(name: str, weights: str | Path | None = None) -> Statistics:
    """Return the statistics that the weights of a backbone expect: those of timm's record, or torchvision's."""
    return timm_statistics(name, weights) if is_timm(name) else IMAGENET


def reference_of(name: str, weights: str | Path | None = None) -> BackboneReference:
    """Return what a run records of its backbone; `weights` as `backbone` takes them, or a run's folder.

    Raises InputError for an unknown name of timm.
    """
    if is_timm(name):
        return timm_reference(name, weights)
    published = weights is not None and not Path(weights).exists()
    return BackboneReference(
        name=name,
        library=f"torchvision {torchvision.__version__}",
        tag=str(weights) if published else None,
        mean=list(IMAGENET.mean),
        deviation=list(IMAGENET.deviation),
    )


def backbone(
    name: str,
    weights: str | Path | None = None,
    stride: int | None = None,
    *,
    size: tuple[int, int] = (SMALL, SMALL),
    statistics: Statistics | None = None,
) -> Backbone:
    """Make a classification model of torchvision, or of timm for `timm/NAME`, up to its last feature map before
    pooling.

    `weights` is None (random), the name of torchvision weights such as `DEFAULT` (torchvision downloads them), or a
    file with a state dict of the classifier, read with `weights_only=True`. It may be wrapped in a checkpoint, lack the
    head or have another one; a log line then says what was taken. With `stride` (pixels per cell), the
    model ends at the last feature map of that stride: finer cells, smaller receptive fields.

    torchvision's models that only take pictures of 224 pixels (MaxViT, vision transformers) work at that size. The
    feature map of a vision transformer is the grid of its patch tokens. timm's are made for pictures of `size` (height,
    width); `protoserve.networks.timm_models.timm_body` says more. `statistics` are those that the weights expect (None:
    as `statistics_of` says).

    Raises InputError for an unknown name, for weights that can't be downloaded, can't be read or don't fit, for a
    stride that the model does not have, and for a model without a feature map.
    """
    if is_timm(name):
        made = timm_body(name, weights, stride, size)
        found = statistics_of(name, weights) if statistics is None else statistics
        return Backbone(name, made.body, made.channels, made.stride, statistics=found)
    known = names()
    if name not in known:
        raise InputError(f"no torchvision model {name!r}{nearest(name, known)}; a model of timm is called timm/{name}")
    model, given = _with_weights(name, weights)
    model.eval()
    try:
        traced = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise InputError(f"backbone {name!r} can't be traced by torch.fx ({error}); choose another") from error
    feature = _feature_node(traced, name, stride)
    body = _cut(traced, feature)
    if given is not None:
        check_weights(Path(str(weights)), name, model, body, given)
    return Backbone(name, body, feature.channels, feature.stride)


@torch.inference_mode()
def in_tiles(whole: Backbone, tile: int, step: int | None, height: int, width: int) -> Backbone:
    """Make the backbone that sees pictures of `height` × `width` pixels in tiles of `tile` pixels, one every `step`
    (None: `tile`), and shares the weights of `whole`.

    Raises InputError if tiles do not cover the pictures exactly, or if the backbone can't take pictures of that size.
    """
    tiles = Tiles(tile, tile if step is None else step)
    tile_grid(height, width, tiles.tile, tiles.step)
    parameter = next(whole.parameters())
    try:
        cells = whole.body(torch.zeros(1, 3, tile, tile, device=parameter.device)).shape[2:].numel()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"model.tile: backbone {whole.name!r} can't take tiles of {tile} × {tile} pixels ({error}); choose larger "
            "tiles or another backbone"
        ) from error
    if cells == 0:
        raise InputError(
            f"model.tile: the feature map of backbone {whole.name!r} is empty for tiles of {tile} × {tile} pixels; "
            f"choose tiles of at least {whole.stride}"
        )
    return Backbone(whole.name, whole.body, whole.channels, whole.stride, tiles, statistics=whole.statistics)


def with_receptive_field(whole: Backbone, pixels: int, step: int | None = None) -> Backbone:
    """Make the backbone whose cells see a square of at most `pixels` pixels and are `step` pixels apart (None: as many
    as those of `whole`); it takes over the layers of `whole`.

    Raises InputError as `receptive_field.limit` does, and if maps of different sizes meet in the changed layers.
    """
    field = limit(whole.body, pixels, step, whole.name)
    was_training = whole.body.training
    try:
        with torch.no_grad():
            whole.body.eval()(torch.zeros(1, 3, SMALL, SMALL))
    except RuntimeError as error:
        raise InputError(
            f"model.receptive_field: {pixels} does not fit {whole.name!r} ({error}); choose another or a ResNet"
        ) from error
    whole.body.train(was_training)
    return Backbone(whole.name, whole.body, whole.channels, whole.stride, field=field, statistics=whole.statistics)


def _with_weights(name: str, weights: str | Path | None) -> tuple[nn.Module, FileWeights | None]:
    """Return torchvision's classifier with these weights, and what was read if they are a file."""
    # By default Inception and GoogLeNet draw their weights from a truncated normal distribution, which is slow.
    options = {"init_weights": False} if name in {"inception_v3", "googlenet"} else {}
    model: nn.Module
    if weights is None:
        model = torchvision.models.get_model(name, weights=None, **options)
        return model, None
    file = Path(weights)
    if not file.is_file():
        enumeration = torchvision.models.get_model_weights(name)
        if str(weights) not in [*(member.name for member in enumeration), "DEFAULT"]:
            offered = ", ".join(["DEFAULT", *(member.name for member in enumeration)])
            raise InputError(f"weights {str(weights)!r} are neither a file nor weights of {name}; it has {offered}")
        return _downloaded(name, str(weights)), None
    model = torchvision.models.get_model(name, weights=None, **options)
    given = read_weights(file, model.state_dict())
    model.load_state_dict(given.fitting, strict=False)
    return model, given


def _downloaded(name: str, weights: str) -> nn.Module:
    """Return a model with torchvision's weights, from its cache or the network."""
    cure = "give --weights FILE, or --weights none for random ones"
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise InputError(
                f"weights {weights!r}: can't keep them in {error.filename} ({error.strerror}); set TORCH_HOME to a "
                f"folder that is writable, or {cure}"
            ) from error
        reason = getattr(error, "reason", None) or error
        raise InputError(f"weights {weights!r} of {name}: can't download them ({reason}); {cure}") from error
    return model


def _shapes(traced: fx.GraphModule, size: int) -> dict[str, tuple[int, ...]]:
    """Return every node's output shape for one picture of `size` × `size` pixels."""
    shapes: dict[str, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                shapes[node.name] = tuple(result.shape)
            return result

    with torch.no_grad():
        Recorder(traced).run(torch.zeros(1, 3, size, size))
    return shapes


class _Feature(NamedTuple):
    """The node to cut after. If its output is tokens instead of a map, `grid` is the side of the token grid."""

    node: fx.Node
    channels: int
    stride: int
    grid: int | None = None


def _feature_node(traced: fx.GraphModule, name: str, stride: int | None) -> _Feature:
    """Find the last node, of that stride or of the largest, whose output is a map that grows with the picture."""
    at_small = _shapes(traced, SMALL)
    try:
        at_large = _shapes(traced, LARGE)
    except (RuntimeError, AssertionError, ValueError):
        features = _fixed_size_features(traced, at_small)
    else:
        features = {}
        for node in traced.graph.nodes:
            shape, grown = at_small.get(node.name, ()), at_large.get(node.name, ())
            is_map = len(shape) == 4 and shape[1] == grown[1] and 1 < shape[2] < grown[2] and 1 < shape[3] < grown[3]
            if is_map and _may_be_feature(node):
                pixels = round(SMALL / shape[2])
                features[pixels] = _Feature(node, shape[1], pixels)
    if not features:
        raise InputError(f"backbone {name!r} has no feature map; choose another model")
    chosen = max(features) if stride is None else stride
    if chosen not in features:
        raise InputError(f"backbone {name!r} has no feature map of stride {stride}; it has {sorted(features)}")
    return features[chosen]


def _may_be_feature(node: fx.Node) -> bool:
    # SqueezeNet classifies with a convolution before it pools; its class maps are not features.
    return node.op != "placeholder" and not str(node.target).startswith(("classifier", "fc", "head"))


def _fixed_size_features(traced: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> dict[int, _Feature]:
    """Find the only feature, by its stride, of a model that takes one picture size.

    It is the last map [1, channels, side, side] or the last tokens [1, 1 + side², width] (a class token, then one per
    patch), whichever comes later.
    """
    features: dict[int, _Feature] = {}
    for node in traced.graph.nodes:
        shape = shapes.get(node.name, ())
        if not _may_be_feature(node):
            continue
        if len(shape) == 4 and 1 < shape[2] == shape[3] < SMALL and SMALL % shape[2] == 0 and shape[1] > 3:
            feature = _Feature(node, shape[1], SMALL // shape[2])
        elif len(shape) == 3 and (side := math.isqrt(shape[1] - 1)) > 1 and side * side == shape[1] - 1:
            feature = _Feature(node, shape[2], SMALL // side, side)
        else:
            continue
        features = {feature.stride: feature}
    return features


def _cut(traced: fx.GraphModule, last: _Feature) -> fx.GraphModule:
    """Copy the graph up to the node of `last` and make tokens a map."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        copied[node] = graph.node_copy(node, lambda argument: copied[argument])
        if node is last.node:
            break
    output = copied[last.node]
    if last.grid is not None:
        patches = graph.call_method("narrow", (output, 1, 1, last.grid * last.grid))
        output = graph.call_method(
            "unflatten", (graph.call_method("transpose", (patches, 1, 2)), 2, (last.grid, last.grid))
        )
    graph.output(output)
    body = fx.GraphModule(traced, graph)
    body.graph.eliminate_dead_code()
    body.recompile()
    body.delete_all_unused_submodules()
    return body
