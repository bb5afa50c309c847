"""The resize rule of `protoserve.images.fitting.fit` as part of the graph, for hosts without a good resize.

Pillow's antialiased bilinear filter is separable. Every output pixel is a weighted mean of input pixels; the weights
form a triangle that widens as the picture shrinks. With one matrix per axis, the resize is two matrix products, which
every runtime has, for any picture size and every rule. The graph rounds after each product, as Pillow does, so few
pixels differ, and by two grey levels at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.network_answers import NetworkAnswers
from export.parity import FLOAT32, Fitter, Precision, Runtime, compare
from export.records import ResizeReport, TargetReport
from protoserve.errors import ParityError
from protoserve.images.decoding import decode
from protoserve.images.fitting import PAD_COLOUR, fit
from protoserve.images.geometry import InputRule

# (height, width) of the gate's pictures. Some shrink, some grow; some are wider, some taller than the input.
SHAPES: Final = ((480, 640), (500, 333), (301, 300), (96, 150), (64, 48))
# Weights are whole numbers that sum to this. Sums of their products with grey levels stay below 2²⁴, so float32 adds
# them without rounding, in any order.
UNIT: Final = 65536.0
# Just above a half. If a picture grows by a simple fraction, many sums lie exactly between two grey levels. The margin
# makes them round up even in a runtime with a weight that is off by one.
HALF: Final = 0.5 + 2.0**-7
# The graph and Pillow round once per axis, and their sums differ in the last bits.
GREY_LEVELS: Final = 2
# The output of the resizing part of the graph.
FITTED: Final = "fitted"


class FittedGraph(nn.Module):
    """Maps uint8 `image` [1, any height, any width, 3] to the graph's outputs for the picture resized by the rule."""

    def __init__(self, graph: nn.Module, rule: InputRule) -> None:
        super().__init__()
        self.fit = Fit(rule)
        # torch.export's modules already have an attribute `graph`.
        self.explained = graph

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.explained(self.fit(image))
        return outputs


class Fit(nn.Module):
    """Resizes uint8 [1, H, W, 3] to uint8 [1, rule.height, rule.width, 3]."""

    colour: Tensor

    def __init__(self, rule: InputRule) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("colour", torch.tensor(PAD_COLOUR, dtype=torch.float32).reshape(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.arange(image.shape[1], device=image.device)
        columns = torch.arange(image.shape[2], device=image.device)
        # Sizes are tensors [1], which every exporter can trace.
        height, width = rows[-1:] + 1, columns[-1:] + 1
        target = (self.rule.height, self.rule.width)
        wider = width * target[0] >= height * target[1]
        down, across = height.float(), width.float()
        sizes = (torch.full_like(height, target[0]), torch.full_like(width, target[1]))
        if self.rule.resize == "crop":
            # The minimum keeps rounding errors from making the part larger than the picture.
            part_down = torch.where(wider, down, torch.minimum(across * (target[0] / target[1]), down))
            part_across = torch.where(wider, torch.minimum(down * (target[1] / target[0]), across), across)
            down, across = part_down * self.rule.share, part_across * self.rule.share
        elif self.rule.resize == "pad":
            sizes = (
                torch.where(wider, _rounded_quotient(height * target[1], width), sizes[0]),
                torch.where(wider, sizes[1], _rounded_quotient(width * target[0], height)),
            )
        vertical, seen_down = _weights(rows, height, down, sizes[0], target[0])
        horizontal, seen_across = _weights(columns, width, across, sizes[1], target[1])
        planes = image[0].permute(2, 0, 1).float()
        narrow = torch.floor(torch.matmul(planes, horizontal.t()) / UNIT + HALF)
        fitted = torch.floor(torch.matmul(vertical, narrow) / UNIT + HALF).clamp(0.0, 255.0)
        if self.rule.resize == "pad":
            fitted = torch.where(seen_down[:, None] & seen_across[None, :], fitted, self.colour)
        return fitted.permute(1, 2, 0)[None].to(torch.uint8)


def check_fitted(
    network: NetworkAnswers,
    runtime: Runtime,
    rule: InputRule,
    samples: NDArray[np.uint8],
    *,
    precision: Precision = FLOAT32,
    fitter: Fitter | None = None,
    routed: bool = False,
) -> TargetReport:
    """Apply the parity gate to a graph that resizes, on `samples` uint8 [pictures, H, W, 3] stretched to `SHAPES`.

    It compares the runtime's outputs with the network's on the pixels that the graph itself computes, and these pixels
    with the host's. `fitter` runs only the graph's resizing part in that runtime; it may be None if the runtime's
    pixels are exactly PyTorch's. Raises ParityError as `export.parity.check` does, and if a pixel differs by more than
    two grey levels.
    """
    fitter = fitter or _in_torch(Fit(rule).eval())
    differing, worst, same = [], 0, []
    pairs = []
    for picture in reshaped(samples):
        inside = fitter(picture[None])
        host = fit(decode(picture), rule).array[None]
        paths = [network.of(pixels)[0]["path"] for pixels in (inside, host)]
        difference = np.abs(inside.astype(np.int64) - host)
        differing.append(float((difference > 0).mean()))
        worst = max(worst, int(difference.max()))
        same.append(bool((paths[0] == paths[1]).all()))
        pairs.append((picture[None], inside))
    if worst > GREY_LEVELS:
        raise ParityError(
            f"parity: the graph's resize differs from the host's by {worst} grey levels; no bundle was written"
        )
    return TargetReport(
        precision=precision.name,
        pictures=len(samples),
        tolerance=precision.tolerance,
        resize=ResizeReport(
            worst_grey_levels=worst,
            pixels_differing=float(np.mean(differing)),
            same_path_as_host=float(np.mean(same)),
        ),
        batches={1: compare(network, runtime, pairs, precision=precision, routed=routed)},
    )


def _in_torch(module: Fit) -> Fitter:
    def run(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            fitted: NDArray[np.uint8] = module(torch.from_numpy(picture)).numpy()
        return fitted

    return run


def reshaped(samples: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Stretch the pictures to the `SHAPES`, in turn."""
    for sample, (height, width) in zip(samples, cycle(SHAPES), strict=False):
        yield np.array(Image.fromarray(sample).resize((width, height), Image.Resampling.BICUBIC))


def _rounded_quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.div(2 * numerator + denominator, 2 * denominator, rounding_mode="floor").clamp_min(1)


def _weights(positions: Tensor, length: Tensor, part: Tensor, size: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """(weights, seen) of one axis: float32 [target, n], rows that sum to `UNIT`, for input pixels at int64 [n].

    The centred `part` of `length`, in pixels, becomes the centred `size` of the `target` output pixels; `seen` bool
    [target] marks these.
    """
    outputs = torch.arange(target, device=positions.device) - torch.div(target - size, 2, rounding_mode="floor")
    seen = (outputs >= 0) & (outputs < size)
    scale = part / size.float()
    reach = scale.clamp_min(1.0)
    centres = (length.float() - part) / 2 + (outputs.float() + 0.5) * scale
    distance = (positions.float()[None, :] + 0.5 - centres[:, None]).abs()
    triangle = torch.floor((1.0 - distance / reach).clamp_min(0.0) * UNIT + 0.5)
    # Output pixels outside the part have no weights; the caller gives them the border's colour.
    weights = triangle / triangle.sum(1, keepdim=True).clamp_min(1.0) * UNIT
    return torch.floor(weights + 0.5) * seen[:, None].float(), seen
