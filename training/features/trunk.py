"""Cut a backbone into a frozen trunk, whose output can be cached, and a top that learns.

torchvision's `create_feature_extractor` can extract the trunk but not the top: a graph that takes the trunk's output
and shares the backbone's modules.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch import fx

from training.features.building import trainable_parts


class Cut(NamedTuple):
    """A backbone cut in two: the frozen `trunk`, and `top`, whose last parts learn. Both share the backbone's modules,
    and `top(trunk(x))` equals the backbone."""

    trunk: fx.GraphModule
    top: fx.GraphModule


def cut_at(body: fx.GraphModule, train_from: str | None) -> Cut | None:
    """Cut a backbone before the first part that learns (see `trainable_parts`), or earlier if more than one map would
    cross the cut, as inside a residual block. Returns None if the trunk would be empty."""
    learning = trainable_parts(body, train_from)
    nodes = [node for node in body.graph.nodes if node.op != "output"]
    first = next(
        (
            index
            for index, node in enumerate(nodes)
            if node.op in ("call_module", "get_attr") and str(node.target) in learning
        ),
        len(nodes),
    )
    for index in range(first, 0, -1):
        before = set(nodes[:index])
        crossing = {used for node in body.graph.nodes if node not in before for used in node.all_input_nodes} & before
        # A node that is indexed may be a tuple of maps.
        if len(crossing) == 1 and not any(user.target is operator.getitem for user in next(iter(crossing)).users):
            crossed = crossing.pop()
            if crossed.op in ("placeholder", "get_attr"):
                return None
            return Cut(_part(body, nodes[:index], None, crossed), _part(body, nodes[index:], crossed, nodes[-1]))
    return None


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
