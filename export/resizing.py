"""The resize rule of `protoserve.images.fitting.fit` as a part of the graph, for hosts that have no good resize.

Pillow's antialiased bilinear filter is separable: every output pixel is a weighted mean of input pixels, by a triangle
as wide as the picture shrinks. As a matrix per axis it is two products, which every runtime has, for any size of
picture and every rule. Pillow's rounding after each is kept, so pixels differ by two grey levels at most, and few do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.parity import FLOAT32, Fitter, Precision, Runtime, compare
from protoserve.errors import ParityError
from protoserve.images.decoding import decode
from protoserve.images.fitting import PAD_COLOUR, fit
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import ExplainedNetwork

# Height and width: pictures that shrink and grow, that are wider and higher than most models' input.
SHAPES: Final = ((480, 640), (500, 333), (301, 300), (96, 150), (64, 48))
# Weights are whole numbers that add up to this. Their products with grey levels stay below 2²⁴, so that float32 adds
# them without rounding, in whatever order a runtime adds.
UNIT: Final = 65536.0
# Just above a half: sums that lie between two grey levels, as many do where a picture grows by a simple fraction, go up
# also in a runtime that has a weight off by one.
HALF: Final = 0.5 + 2.0**-7
# Rounded twice, along each axis, by sums that differ in their last bits.
GREY_LEVELS: Final = 2
# The output of the graph's first part alone, which resizes.
FITTED: Final = "fitted"


class FittedGraph(nn.Module):
    """uint8 `image` [1, any height, any width, 3] → the graph's outputs for the picture that the rule makes of it."""

    def __init__(self, graph: nn.Module, rule: InputRule) -> None:
        super().__init__()
        self.fit = Fit(rule)
        # Not `graph`: torch.export's modules have an attribute of that name already.
        self.explained = graph

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.explained(self.fit(image))
        return outputs


class Fit(nn.Module):
    """uint8 [1, H, W, 3] → uint8 [1, rule.height, rule.width, 3]."""

    colour: Tensor

    def __init__(self, rule: InputRule) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("colour", torch.tensor(PAD_COLOUR, dtype=torch.float32).reshape(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.arange(image.shape[1], device=image.device)
        columns = torch.arange(image.shape[2], device=image.device)
        # Sizes as tensors [1]: exporters follow those everywhere.
        height, width = rows[-1:] + 1, columns[-1:] + 1
        target = (self.rule.height, self.rule.width)
        wider = width * target[0] >= height * target[1]
        down, across = height.float(), width.float()
        sizes = (torch.full_like(height, target[0]), torch.full_like(width, target[1]))
        if self.rule.resize == "crop":
            # The larger of the two parts never exceeds the picture but by rounding.
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
    network: ExplainedNetwork,
    top_k: int,
    runtime: Runtime,
    rule: InputRule,
    samples: NDArray[np.uint8],
    *,
    precision: Precision = FLOAT32,
    fitter: Fitter | None = None,
    routed: bool = False,
) -> dict[str, Any]:
    """The parity gate for a graph that resizes: `samples` uint8 [pictures, H, W, 3] as pictures of several shapes.

    The runtime is compared with the network on the pixels that it makes itself, and these with the host's: `fitter` is
    the graph's first part alone in that runtime, or None for one that comes to PyTorch's very pixels. Returns a
    JSON-ready report, with the share of pixels that differ and how often both come to the same path. Raises ParityError
    as `export.parity.check` does, and where a pixel differs by more than two grey levels.
    """
    fitter = fitter or _in_torch(Fit(rule).eval())
    differing, worst, same = [], 0, []
    pairs = []
    for picture in reshaped(samples):
        inside = fitter(picture[None])
        host = fit(decode(picture), rule).array[None]
        with torch.inference_mode():
            paths = [network.explain(torch.from_numpy(pixels), top_k).path for pixels in (inside, host)]
        difference = np.abs(inside.astype(np.int64) - host)
        differing.append(float((difference > 0).mean()))
        worst = max(worst, int(difference.max()))
        same.append(bool((paths[0] == paths[1]).all()))
        pairs.append((picture[None], inside))
    if worst > GREY_LEVELS:
        raise ParityError(
            f"parity: the graph's resize differs from the host's by {worst} grey levels; no bundle was written"
        )
    return {
        "precision": precision.name,
        "pictures": len(samples),
        "tolerance": vars(precision.tolerance),
        "resize": {
            "worst_grey_levels": worst,
            "pixels_differing": float(np.mean(differing)),
            "same_path_as_host": float(np.mean(same)),
        },
        "batch_1": compare(network, top_k, runtime, pairs, precision=precision, routed=routed),
    }


def _in_torch(module: Fit) -> Fitter:
    def run(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            fitted: NDArray[np.uint8] = module(torch.from_numpy(picture)).numpy()
        return fitted

    return run


def reshaped(samples: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The pictures in turn, each stretched to another of `SHAPES`."""
    for sample, (height, width) in zip(samples, cycle(SHAPES), strict=False):
        yield np.array(Image.fromarray(sample).resize((width, height), Image.Resampling.BICUBIC))


def _rounded_quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.div(2 * numerator + denominator, 2 * denominator, rounding_mode="floor").clamp_min(1)


def _weights(places: Tensor, length: Tensor, part: Tensor, size: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """How input pixels int64 [n] make the output pixels of one axis: float32 [target, n], rows that sum to `UNIT`.

    The `part` (pixels, centred) of `length` becomes `size` of the `target` pixels, centred, too; bool [target] says
    which.
    """
    outputs = torch.arange(target, device=places.device) - torch.div(target - size, 2, rounding_mode="floor")
    seen = (outputs >= 0) & (outputs < size)
    scale = part / size.float()
    reach = scale.clamp_min(1.0)
    centres = (length.float() - part) / 2 + (outputs.float() + 0.5) * scale
    distance = (places.float()[None, :] + 0.5 - centres[:, None]).abs()
    triangle = torch.floor((1.0 - distance / reach).clamp_min(0.0) * UNIT + 0.5)
    # Output pixels beyond the part see nothing; the colour of the border takes their place.
    weights = triangle / triangle.sum(1, keepdim=True).clamp_min(1.0) * UNIT
    return torch.floor(weights + 0.5) * seen[:, None].float(), seen
