"""Any torchvision classification model by name, cut before its pooling; a run of it tells channels and stride.

torchvision's `create_feature_extractor` cuts at a node that the caller names. Here the node is found by the shapes of
all outputs, tokens become a map, and the result is one graph with one output: the library's has a dictionary as output
and another graph for training, in which export and the cut for fine-tuning would have to look for the map again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, fx, nn

from protoserve.errors import InputError, nearest

# Pictures are normalised with the statistics that torchvision's weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)
# Two picture sizes tell a feature map, which grows, from the output of an adaptive pool, which does not.
SMALL, LARGE = 224, 320


class Backbone(nn.Module):
    """A convolutional feature extractor.

    `channels` is the width of its feature map, `stride` the pixels per cell (rounded), `name` torchvision's name.
    `forward`: normalised pictures float32 [batch, 3, height, width] → feature maps [batch, channels, rows, columns].
    """

    def __init__(self, name: str, body: fx.GraphModule, channels: int, stride: int) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.channels = channels
        self.stride = stride

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.body(pictures)
        return features


def names() -> list[str]:
    """The names that `backbone` takes: torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def backbone(name: str, weights: str | Path | None = None, stride: int | None = None) -> Backbone:
    """A torchvision classification model up to its last feature map before pooling.

    `weights` is None (random), a torchvision weights name such as `DEFAULT` (downloaded by torchvision), or a file
    with a state dict of the whole classifier, read with `weights_only=True`. With `stride`, the last feature map of
    that stride is taken instead: finer cells, smaller receptive fields.

    Models that take pictures of 224 pixels only (MaxViT, vision transformers) work at that size; a vision
    transformer's feature map is the grid of its patch tokens.

    Raises InputError for an unknown name, weights that can't be read or don't fit, a stride that the model does
    not have, and for models in which no feature map is found.
    """
    known = names()
    if name not in known:
        raise InputError(f"no torchvision model {name!r}{nearest(name, known)}")
    model = _with_weights(name, weights)
    model.eval()
    try:
        traced = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise InputError(f"backbone {name!r} can't be traced by torch.fx ({error}); choose another") from error
    feature = _feature_node(traced, name, stride)
    return Backbone(name, _cut(traced, feature), feature.channels, feature.stride)


def _with_weights(name: str, weights: str | Path | None) -> nn.Module:
    # Inception and GoogLeNet start with a slow truncated normal and carry auxiliary heads only when asked.
    options = {"init_weights": False} if name in {"inception_v3", "googlenet"} else {}
    if weights is None:
        return torchvision.models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]
    file = Path(weights)
    if not file.is_file():
        enumeration = torchvision.models.get_model_weights(name)
        if str(weights) not in [*(member.name for member in enumeration), "DEFAULT"]:
            offered = ", ".join(["DEFAULT", *(member.name for member in enumeration)])
            raise InputError(f"weights {str(weights)!r} are neither a file nor weights of {name}; it has {offered}")
        return torchvision.models.get_model(name, weights=str(weights))  # type: ignore[no-any-return]
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises to read the file in a way that runs code from it.
        raise InputError(f"{file}: can't read the weights; give a state dict of tensors saved by torch.save") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: these are not weights of {name}: {str(error)[:300]}") from error
    return model


def _shapes(traced: fx.GraphModule, size: int) -> dict[str, tuple[int, ...]]:
    """The output shape of every node for one picture of `size` pixels."""
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
    """The node to cut after; `grid` is the side of the token grid where the node gives tokens instead of a map."""

    node: fx.Node
    channels: int
    stride: int
    grid: int | None = None


def _feature_node(traced: fx.GraphModule, name: str, stride: int | None) -> _Feature:
    """The last node whose output is a map that grows with the picture, so that adaptive pools do not count."""
    at_small = _shapes(traced, SMALL)
    try:
        at_large = _shapes(traced, LARGE)
    except (RuntimeError, AssertionError, ValueError):
        found = _fixed_size_feature(traced, at_small)
    else:
        found = {}
        for node in traced.graph.nodes:
            shape, grown = at_small.get(node.name, ()), at_large.get(node.name, ())
            is_map = len(shape) == 4 and shape[1] == grown[1] and 1 < shape[2] < grown[2] and 1 < shape[3] < grown[3]
            if is_map and _may_be_feature(node):
                cell = round(SMALL / shape[2])
                found[cell] = _Feature(node, shape[1], cell)
    if not found:
        raise InputError(f"backbone {name!r} has no feature map; choose another model")
    wanted = max(found) if stride is None else stride
    if wanted not in found:
        raise InputError(f"backbone {name!r} has no feature map of stride {stride}; it has {sorted(found)}")
    return found[wanted]


def _may_be_feature(node: fx.Node) -> bool:
    # SqueezeNet classifies by a convolution before it pools; its class maps are not features.
    return node.op != "placeholder" and not str(node.target).startswith(("classifier", "fc", "head"))


def _fixed_size_feature(traced: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> dict[int, _Feature]:
    """For models of one picture size: the last map [1, channels, side, side], or the last tokens [1, 1 + side², width]
    (a class token, then one per patch), whichever comes later."""
    found: dict[int, _Feature] = {}
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
        found = {feature.stride: feature}
    return found


def _cut(traced: fx.GraphModule, last: _Feature) -> fx.GraphModule:
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
