"""Cut a backbone into a frozen trunk, whose output can be cached, and a top that learns.

torchvision's `create_feature_extractor` can extract the trunk but not the top: a graph that takes the trunk's output
and shares the backbone's modules.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor, fx, nn

from protoserve.networks.backbones import Backbone
from protoserve.networks.tiles import Tiles, mean_cells, on_tiles
from training.features.building import trainable_parts


class Cut(NamedTuple):
    """A backbone cut in two: the frozen `trunk`, and `top`, whose last parts learn. Both share the backbone's modules,
    and `top(trunk(x))` equals the backbone."""

    trunk: fx.GraphModule
    top: fx.GraphModule


class TiledTrunk(nn.Module):
    """The trunk of a backbone that sees tiles: pictures [N, 3, H, W] → the maps of every tile
    [N, rows, columns, channels, h, w]."""

    def __init__(self, trunk: fx.GraphModule, tiles: Tiles) -> None:
        super().__init__()
        self.trunk, self.tiles = trunk, tiles

    def forward(self, pictures: Tensor) -> Tensor:
        return on_tiles(self.trunk, self.tiles.cut(pictures))


class TiledTop(nn.Module):
    """The top of a backbone that sees tiles: the output of `TiledTrunk` → feature maps [N, channels, rows, columns]."""

    def __init__(self, top: fx.GraphModule) -> None:
        super().__init__()
        self.top = top

    def forward(self, maps: Tensor) -> Tensor:
        return mean_cells(on_tiles(self.top, maps))


class TiledCut(NamedTuple):
    """A backbone that sees tiles, cut in two as `Cut`."""

    trunk: TiledTrunk
    top: TiledTop


def cut_backbone(backbone: Backbone, train_from: str | None) -> Cut | TiledCut | None:
    """Cut a backbone as `cut_at` does its body; `top(trunk(pictures))` equals the backbone."""
    cut = cut_at(backbone.body, train_from)
    if cut is None or backbone.tiles is None:
        return cut
    return TiledCut(TiledTrunk(cut.trunk, backbone.tiles), TiledTop(cut.top))


def cut_at(body: fx.GraphModule, train_from: str | None) -> Cut | None:
    """Cut a backbone before the first part that learns (see `trainable_parts`), or earlier if more than one map would
    cross the cut, as inside a residual block. Returns None if the trunk would be empty."""
    learning = trainable_parts(body, train_from)
    nodes = [node for node in body.graph.nodes if node.op != "output"]
    first = next(
        (
            index
            for index, node in enumerate(nodes)
            if node.op in ("call_module", "get_attr") and _learns(str(node.target), learning)
        ),
        len(nodes),
    )
    # Tables and parameters that learn nothing may be read in both parts.
    fixed = [node for node in nodes[:first] if node.op == "get_attr"]
    for index in range(first, 0, -1):
        before = set(nodes[:index]) - set(fixed)
        after = [node for node in body.graph.nodes if node not in before and node not in fixed]
        crossing = {used for node in after for used in node.all_input_nodes} & before
        # A node that is indexed may be a tuple of maps.
        if len(crossing) == 1 and not any(user.target is operator.getitem for user in next(iter(crossing)).users):
            crossed = crossing.pop()
            if crossed.op == "placeholder":
                return None
            read = [node for node in fixed if any(user in after for user in node.users)]
            return Cut(
                _part(body, nodes[:index], None, crossed), _part(body, [*read, *nodes[index:]], crossed, nodes[-1])
            )
    return None


def _learns(target: str, learning: Collection[str]) -> bool:
    """Whether a part of the graph learns, or one inside it: tracing keeps some modules of timm whole."""
    return target in learning or any(name.startswith(f"{target}.") for name in learning)


def _part(body: fx.GraphModule, nodes: list[fx.Node], source: fx.Node | None, last: fx.Node) -> fx.GraphModule:
    """The subgraph of `nodes` with the output of `last`. A placeholder replaces `source`, the one node outside that
    they read; it is None if they include the graph's input."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if source is not None:
        copied[source] = graph.placeholder("maps")
    for node in nodes:
        copied[node] = graph.node_copy(node, lambda argument: copied[argument])
    graph.output(copied[last])
    return fx.GraphModule(body, graph)
