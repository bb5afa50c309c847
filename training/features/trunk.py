"""The trunk of a backbone: its first part, which does not learn, so that its output can be kept.

torchvision's `create_feature_extractor` gives the trunk but not the rest: a graph that starts from the trunk's output
and shares the backbone's modules.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch import fx

from training.features.building import trainable_parts


class Cut(NamedTuple):
    """A backbone in two: `trunk`, which is frozen, and `top`, whose last parts learn. Both share the modules of the
    backbone; `top(trunk(x))` equals the backbone."""

    trunk: fx.GraphModule
    top: fx.GraphModule


def cut_at(body: fx.GraphModule, train_from: str | None) -> Cut | None:
    """Cut a backbone before the first part that learns (see `trainable_parts`), or earlier where more than one map
    would have to cross the cut, as within a residual block. None where nothing stands before the cut."""
    learning = trainable_parts(body, train_from)
    nodes = [node for node in body.graph.nodes if node.op != "output"]
    first = next(
        (
            place
            for place, node in enumerate(nodes)
            if node.op in ("call_module", "get_attr") and str(node.target) in learning
        ),
        len(nodes),
    )
    for place in range(first, 0, -1):
        before = set(nodes[:place])
        crossing = {used for node in body.graph.nodes if node not in before for used in node.all_input_nodes} & before
        # A node whose users index it may be a tuple of maps.
        if len(crossing) == 1 and not any(user.target is operator.getitem for user in next(iter(crossing)).users):
            crossed = crossing.pop()
            if crossed.op in ("placeholder", "get_attr"):
                return None
            return Cut(_part(body, nodes[:place], None, crossed), _part(body, nodes[place:], crossed, nodes[-1]))
    return None


def _part(body: fx.GraphModule, nodes: list[fx.Node], given: fx.Node | None, last: fx.Node) -> fx.GraphModule:
    """The part of a graph made of `nodes`, up to `last`. A placeholder replaces `given`, the one node outside that they
    read; None where they start with the graph's own input."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if given is not None:
        copied[given] = graph.placeholder("maps")
    for node in nodes:
        copied[node] = graph.node_copy(node, lambda argument: copied[argument])
    graph.output(copied[last])
    return fx.GraphModule(body, graph)
