"""The trunk of a backbone: its first part, which does not learn, so that what it gives can be kept."""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch import fx

from training.features.building import trainable_parts


class Cut(NamedTuple):
    """A backbone in two: `trunk`, which stands still, and `top`, of which the last parts learn. Both hold the very
    modules of the backbone; `top(trunk(x))` is the backbone."""

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
        # What is taken apart by index may be a tuple of maps.
        if len(crossing) == 1 and not any(user.target is operator.getitem for user in next(iter(crossing)).users):
            crossed = crossing.pop()
            if crossed.op in ("placeholder", "get_attr"):
                return None
            return Cut(_part(body, nodes[:place], None, crossed), _part(body, nodes[place:], crossed, nodes[-1]))
    return None


def _part(body: fx.GraphModule, nodes: list[fx.Node], given: fx.Node | None, last: fx.Node) -> fx.GraphModule:
    """The part of a graph made of `nodes`, in place of whose one outer input, if there is one, stands a placeholder."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if given is not None:
        copied[given] = graph.placeholder("maps")
    for node in nodes:
        copied[node] = graph.node_copy(node, lambda argument: copied[argument])
    graph.output(copied[last])
    return fx.GraphModule(body, graph)
