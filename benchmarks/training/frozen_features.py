"""Time the features of frozen backbones in PyTorch and in onnxruntime, side by side. One command:

    python -m benchmarks.training.frozen_features

Passes batches of random pictures through each backbone with random weights, in turn with both engines, on one thread,
and counts CPU time, so that other work on the machine matters little. Writes
benchmarks/results/frozen-features.{json,md}.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measuring import described, machine, write_results
from protoserve.networks.backbones import backbone
from protoserve.networks.network import LinearNetwork
from protoserve.taxonomy import Taxonomy
from training.features.frozen import BackboneMaps, frozen_forward

NAMES: Final = (
    "mobilenet_v2",
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "timm/tf_efficientnet_lite0",
    "timm/mobilenetv4_conv_small",
    "timm/vit_small_patch14_dinov2",
)
SIZE: Final = 224
BATCH: Final = 16


def seconds(forward: Callable[[Tensor], Tensor], pictures: Tensor) -> float:
    """CPU seconds per picture."""
    began = time.process_time()
    forward(pictures)
    return (time.process_time() - began) / len(pictures)


@torch.inference_mode()
def compared(name: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of CPU time per picture with each engine (medians), their ratio, and the largest difference as a
    share of the largest feature."""
    torch.manual_seed(0)
    network = LinearNetwork(backbone(name, size=(SIZE, SIZE)), Taxonomy.from_paths(("a", "b"))).eval()
    part = BackboneMaps(network)
    pictures = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    quick = frozen_forward(part, BATCH, "onnxruntime", torch.device("cpu"), Console(stderr=True))
    began = time.process_time()
    found = quick(pictures)
    first = time.process_time() - began
    expected = part(pictures)
    plain, fast = zip(*((seconds(part, pictures), seconds(quick, pictures)) for _ in range(repeats)), strict=True)
    return {
        "torch_ms": 1e3 * median(plain),
        "onnxruntime_ms": 1e3 * median(fast),
        "ratio": median(a / b for a, b in zip(plain, fast, strict=True)),
        # The first call also computes the batch with both, to compare them.
        "opening_s": first - BATCH * (median(plain) + median(fast)),
        "difference": float((expected - found).abs().max() / expected.abs().max()),
    }


def main() -> None:
    """Measure all backbones and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="pairs of measurements (default: %(default)s)")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = {name: compared(name, repeats) for name in NAMES}
    found = machine()
    lines = [
        f"Features of frozen backbones, {SIZE} × {SIZE} pixels, batches of {BATCH}, one thread: milliseconds of CPU "
        f"time per picture, medians of {repeats} pairs; `python -m benchmarks.training.frozen_features`.",
        "",
        "| backbone | PyTorch | onnxruntime | ratio | opening, s | difference |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['torch_ms']:.1f} | {row['onnxruntime_ms']:.1f} | {row['ratio']:.2f} | "
            f"{row['opening_s']:.1f} | {row['difference']:.0e} |"
            for name, row in rows.items()
        ),
        "",
        "The ratio is the median over pairs. Opening writes the graph and loads it, once per set of features. The "
        "difference is the largest one, as a share of the largest feature.",
        "",
        described(found),
    ]
    write_results("frozen-features", {"machine": found, "backbones": rows}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
