"""The graphs that `benchmarks/head/cost.py` compares, on one random taxonomy: ours, that of a plain classifier, and
that of a head as in the published code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.graph import ExplainedGraph, RoutedGraph, quiet, write_onnx
from export.targets.table import ROUTED_WIDTH
from protoserve.graph_signature import OUTPUT_NAMES, SEARCH_OUTPUT_NAMES, named_arrays
from protoserve.networks.backbones import backbone
from protoserve.networks.fused_head import FusedHead
from protoserve.networks.head import PrototypeHead
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from protoserve.networks.routed_head import RoutedHead
from protoserve.networks.similarity import Similarity
from protoserve.taxonomy import Taxonomy, competing_groups

SIZE, DIMENSIONS, TOP_K, CELLS = 224, 128, 10, 7
# Rows and columns of the matrix product that measures the machine's rate.
SIDE = 1_024
# Factor on the random last layers of a routed head.
WIDE = 100.0
ROUTED = "routed"
# The arguments of `PrototypeHead` for each form.
SHIPPED: dict[str, Any] = {"unit_length": True, "similarity": Similarity("log1p", epsilon=0.08, zero=2.0)}
FORMS: dict[str, dict[str, Any]] = {"published": {}, "shipped": SHIPPED, ROUTED: SHIPPED}
# The approximate number of parents for each number of prototypes.
PARENTS = {2_000: 40, 20_000: 300}


def taxonomy(parents: int) -> Taxonomy:
    """A random tree of three levels with about this number of parents of leaves, each with 2 to 12 leaves."""
    sizes = np.random.default_rng(0).integers(2, 13, parents)
    top = max(2, round(parents**0.5))
    return Taxonomy.from_paths(
        [f"{parent % top}/{parent}/{leaf}" for parent, size in enumerate(sizes) for leaf in range(size)]
    )


def prototype_children(tree: Taxonomy, count: int) -> list[int]:
    """The node of each of `count` prototypes, spread evenly over all competing nodes, in the order of the head."""
    nodes = [node for group in competing_groups(tree, "hierarchical") for node in group.children]
    shares = np.diff(np.linspace(0, count, len(nodes) + 1).round().astype(int))
    return [node for node, share in zip(nodes, shares, strict=True) for _ in range(share)]


def random_head(prototypes: int, form: str = "published") -> PrototypeHead:
    """A head of one of the `FORMS` with random prototypes and last layers."""
    torch.manual_seed(0)
    tree = taxonomy(PARENTS[prototypes])
    head = PrototypeHead(tree, prototype_children(tree, prototypes), DIMENSIONS, **FORMS[form])
    with torch.no_grad():
        if form == ROUTED:
            head.weight.copy_(WIDE * torch.randn_like(head.weight) * head.own_mask)
        else:
            head.weight.add_(0.1 * torch.randn_like(head.weight))
        head.centre.copy_(head.vectors().mean(0))
    return head.eval()


class Plain(nn.Module):
    """The usual alternative: the backbone, pooling, a linear layer, a softmax over leaves."""

    def __init__(self, network: LinearNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.network.leaf_logits(self.network.features(image)), dim=1)


class Fused(nn.Module):
    """The head of our graphs, from the latent map on."""

    def __init__(self, head: PrototypeHead, form: str) -> None:
        super().__init__()
        routed = form == ROUTED
        self.head = RoutedHead(head, TOP_K, ROUTED_WIDTH) if routed else FusedHead(head, TOP_K, cells=CELLS * CELLS)

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_arrays(self.head(latent)).values())


class Published(nn.Module):
    """A head as in the published code, with the weights of ours.

    For every parent in turn, it computes a convolution with ones for ‖z‖², one with the prototypes for zp, the
    similarity at all cells, its maximum, and a dense last layer. It returns the probabilities of every parent's
    children and all activation maps, as the published code does.
    """

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        self.epsilon, self.shift = head.similarity.epsilon, head.similarity.shift
        self.prototypes, self.weights, self.ones = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        weight, compared = head.effective_weight().detach(), head.vectors().detach()
        for number, group in enumerate(competing_groups(head.taxonomy, head.kind)):
            own = head.grouping.prototype_group == number
            vectors = compared[own][:, :, None, None]
            self.prototypes.append(nn.Parameter(vectors.clone()))
            self.ones.append(nn.Parameter(torch.ones_like(vectors)))
            self.weights.append(nn.Parameter(weight[number, : len(group.children), : int(own.sum())].clone()))

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        probabilities, maps = [], []
        for prototypes, ones, weight in zip(self.prototypes, self.ones, self.weights, strict=True):
            squares = functional.conv2d(latent * latent, ones)
            products = functional.conv2d(latent, prototypes)
            lengths = (prototypes * prototypes).sum((1, 2, 3)).reshape(-1, 1, 1)
            distance = functional.relu(squares - 2.0 * products + lengths)
            similarities = torch.log(1.0 + 1.0 / (distance + self.epsilon)) + self.shift
            smallest = -functional.max_pool2d(-distance, distance.shape[2:])
            pooled = torch.log(1.0 + 1.0 / (smallest.flatten(1) + self.epsilon)) + self.shift
            probabilities.append(torch.softmax(functional.linear(pooled, weight), dim=1))
            maps.append(similarities)
        return torch.cat(probabilities, dim=1), torch.cat(maps, dim=1)


def write_module(module: nn.Module, example: Tensor, file: Path, name: str, *, optimise: bool = True) -> Path:
    """Write any module as an ONNX file with a dynamic batch. Without `optimise`, skips the exporter's own optimiser,
    which takes ten minutes for hundreds of parents in a loop."""
    import onnx

    with quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=20,
            input_names=[name],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
            optimize=optimise,
        )
    assert program is not None
    onnx.save_model(program.model_proto, str(file))
    return file


class Product(nn.Module):
    """A large matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.rand(SIDE, SIDE))

    def forward(self, left: Tensor) -> Tensor:
        return torch.matmul(left, self.right)


def write_product(file: Path) -> None:
    """Write the graph of the large product."""
    write_module(Product(), torch.rand(SIDE, SIDE), file, "left")


def products(head: FusedHead | RoutedHead, prototypes: int) -> int:
    """The number of prototypes that a head multiplies with every cell."""
    if isinstance(head, FusedHead):
        return prototypes
    levels: Any = head.levels
    return head.trunk_prototypes + sum(int(level.width) * int(level.slots) for level in levels)


@torch.no_grad()
def write_networks(name: str, prototypes: int, form: str, explained: Path, plain: Path) -> int:
    """Write both graphs on one backbone; return the number of D-dimensional vectors that a cell is multiplied with: the
    prototypes and, in the add-on layer, the features."""
    example = torch.randint(0, 255, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    head, body = random_head(prototypes, form), backbone(name)
    network = PrototypeNetwork(body, head, None).eval()
    graph: Any = ExplainedGraph(network, TOP_K, example)
    if form == ROUTED:
        graph = RoutedGraph(network, TOP_K, ROUTED_WIDTH)
    write_onnx(graph.eval(), example, explained, {})
    write_module(Plain(LinearNetwork(body, head.taxonomy)), example, plain, "image")
    return products(graph.head, prototypes) + body.channels


@torch.no_grad()
def write_heads(prototypes: int, form: str, fused: Path, published: Path) -> None:
    """Write both heads."""
    head, example = random_head(prototypes, form), torch.rand(2, DIMENSIONS, CELLS, CELLS)
    _write_fused(head, example, fused, form)
    write_module(Published(head), example, published, "latent", optimise=False)


def _write_fused(head: PrototypeHead, example: Tensor, file: Path, form: str) -> Path:
    import onnx

    write_module(Fused(head, form), example, file, "latent")
    model = onnx.load(str(file))
    names = SEARCH_OUTPUT_NAMES if form == ROUTED else OUTPUT_NAMES
    for output, name in zip(model.graph.output, names, strict=True):
        for node in model.graph.node:
            node.output[:] = [name if value == output.name else value for value in node.output]
            node.input[:] = [name if value == output.name else value for value in node.input]
        output.name = name
    onnx.save_model(model, str(file))
    return file
