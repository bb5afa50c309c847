"""Receptive fields: the pixels that a cell of a feature map depends on, and how to limit them.

BagNet (Brendel and Bethge, ICLR 2019) replaces most 3 × 3 convolutions of a ResNet with 1 × 1, so that every cell sees
a small patch. `limit` does so with any convolutional network: layers keep their kernels until a cell would see more
than the limit, and are 1 × 1 from there on. The picture passes through the network once, whatever the overlap of the
fields, with fewer multiply-adds than before.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, has the arithmetic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import fx, nn
from torch.nn import functional

from protoserve.errors import InputError

# Layers and functions whose output at a place depends on their input at that place alone.
_POINTWISE_LAYERS: Final = (
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_POINTWISE_FUNCTIONS: Final[frozenset[Callable[..., object]]] = frozenset(
    (
        operator.add,
        operator.iadd,
        operator.mul,
        torch.add,
        torch.cat,
        torch.relu,
        functional.relu,
        functional.dropout,
        functional.hardswish,
        functional.silu,
        functional.gelu,
    )
)


@dataclass(frozen=True)
class ReceptiveField:
    """The square of input pixels that a cell depends on: cell i of a row sees the `size` pixels from `start + i · step`
    on, as far as they lie in the picture; the same for columns."""

    size: int
    step: int
    start: int

    def through(self, kernel: int, stride: int, padding: int) -> ReceptiveField:
        """Return the field behind a layer of this `kernel` (dilation included), `stride` and `padding`, in cells."""
        return ReceptiveField(
            self.size + (kernel - 1) * self.step, self.step * stride, self.start - padding * self.step
        )

    def joined(self, other: ReceptiveField) -> ReceptiveField:
        """Return the smallest field that holds both, of maps with the same step."""
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return ReceptiveField(end - start, self.step, start)


def limit(body: fx.GraphModule, pixels: int, step: int | None, name: str) -> ReceptiveField:
    """Change a backbone in place so that every cell depends on a square of at most `pixels` pixels; return its field.

    Goes through the layers in order. A convolution or a pool keeps its kernel if the field stays within the limit. Else
    its kernel becomes 1 × 1, with the same stride; the new weights are the old ones summed over the kernel, so that a
    convolution answers an even area as before. Once a cell is `step` pixels from the next, further strides are left out
    (None: none are). `name` names the backbone in messages.

    Raises InputError if a layer may see the whole picture, as in squeeze-and-excitation or attention, if the limit is
    too small for the first layer, and if cells can't be `step` pixels apart.
    """
    fields: dict[fx.Node, ReceptiveField] = {}
    for node in body.graph.nodes:
        if node.op == "placeholder":
            fields[node] = ReceptiveField(1, 1, 0)
        elif node.op == "output":
            field = fields[node.all_input_nodes[0]]
            if field.size == 1:
                raise InputError(
                    f"model.receptive_field: {pixels} is smaller than the first layer of {name!r}; raise it"
                )
            if step is not None and field.step != step:
                raise InputError(
                    f"model.tile_step: cells of {name!r} that see at most {pixels} pixels are {field.step} pixels "
                    f"apart, not {step}; choose {field.step}"
                )
            return field
        else:
            fields[node] = _behind(node, body, fields, pixels, step, name)
    raise AssertionError("a graph has an output")


def _behind(
    node: fx.Node,
    body: fx.GraphModule,
    fields: dict[fx.Node, ReceptiveField],
    pixels: int,
    step: int | None,
    name: str,
) -> ReceptiveField:
    """Return the field of a node's output; first change its layer if the field would be too large, or its step."""
    sources = [fields[source] for source in node.all_input_nodes]
    if node.op == "call_module":
        layer = body.get_submodule(str(node.target))
        # A layer derived from these may pad as it runs.
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and type(layer).__module__.startswith("torch.nn"):
            kernel, stride, padding = _extent(layer, str(node.target), name)
            source = sources[0]
            field = source.through(kernel, stride, padding)
            enough = step is not None and field.step > step
            if field.size <= pixels and not (enough and kernel == 1):
                return field
            stride = 1 if enough else stride
            body.set_submodule(str(node.target), _narrowed(layer, stride))
            return replace(source, step=source.step * stride)
        pointwise = isinstance(layer, _POINTWISE_LAYERS)
    else:
        pointwise = node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS
    if not pointwise or not sources:
        raise InputError(
            f"model.receptive_field: {node.target} of {name!r} may look at the whole picture; choose a backbone of "
            "convolutions, pools and batch norms, such as a ResNet, or use model.tile, which works with any"
        )
    field, *others = sources
    for other in others:
        field = field.joined(other)
    return field


def _extent(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, target: str, name: str) -> tuple[int, int, int]:
    """Return a layer's kernel, with its dilation, stride and padding, the same for rows and columns."""
    dilation = 1 if isinstance(layer, nn.AvgPool2d) else layer.dilation
    values = []
    for value in (layer.kernel_size, layer.stride, layer.padding, dilation):
        pair = (value, value) if isinstance(value, int) else value
        if isinstance(pair, str) or pair[0] != pair[1]:
            raise InputError(
                f"model.receptive_field: layer {target} of {name!r} is not square; choose another backbone, or "
                "model.tile"
            )
        values.append(int(pair[0]))
    kernel, stride, padding, spread = values
    return spread * (kernel - 1) + 1, stride, padding


def _narrowed(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, stride: int) -> nn.Module:
    """Return the layer with a kernel of 1 × 1 and no padding."""
    if not isinstance(layer, nn.Conv2d):
        return nn.MaxPool2d(1, stride)
    narrow = nn.Conv2d(
        layer.in_channels, layer.out_channels, 1, stride, groups=layer.groups, bias=layer.bias is not None
    )
    with torch.no_grad():
        narrow.weight.copy_(layer.weight.sum((2, 3), keepdim=True))
        if layer.bias is not None and narrow.bias is not None:
            narrow.bias.copy_(layer.bias)
    return narrow
