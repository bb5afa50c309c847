"""Measure what a GPU changes, as ratios, on whatever GPU there is. One command (`make bench-gpu BUNDLE=… DATA=…`):

    python -m benchmarks.gpu BUNDLE DATA

Training: a step of a backbone in float32, bfloat16 and float16, as it is and compiled. Answers: the bundle's graph on
the providers CPU, CUDA and TensorRT of onnxruntime, at several batch sizes, and whether probabilities, paths and
evidence on the pictures of DATA agree with the CPU's. All sides of a comparison run in one process and in turns. What
can't be measured is named with the cause. Writes benchmarks/results/gpu.{json,md}.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import answers, training
from benchmarks.measuring import described, machine, training_of, write_results
from protoserve.bundle.folder import read_bundle
from protoserve.data.dataset import read_split
from protoserve.images.fitting import fit

BACKBONES = ("mobilenet_v2", "resnet50")


def measure(bundle: Path, data: Path, split: str, images: int, backbones: tuple[str, ...], size: int) -> dict[str, Any]:
    """All figures, and the machine."""
    opened = read_bundle(bundle)
    pictures = read_split(data, split, opened.taxonomy, left_out=opened.left_out)
    chosen = np.linspace(0, len(pictures) - 1, min(images, len(pictures))).astype(int).tolist()
    arrays = np.stack([fit(pictures.picture(number), opened.input).array for number in chosen])
    sessions, missing = answers.sessions(opened.file("onnx"))
    expected = answers.answers(sessions["CPU"], arrays)
    found: dict[str, Any] = {
        "machine": machine(),
        "bundle": training_of(opened),
        "images": len(arrays),
        "answers": answers.timed(sessions, arrays, answers.BATCHES, answers.ROUNDS),
        "answers_missing": missing,
        "agreement": {
            side: answers.agreement(expected, answers.answers(session, arrays))
            for side, session in sessions.items()
            if side != "CPU"
        },
        "training": {},
    }
    for name in backbones:
        rows, failed = training.timed(
            *(name, torch.device("cuda"), size, training.BATCHES, training.ROUNDS, tuple(training.SIDES))
        )
        found["training"][name] = {"rows": rows, "missing": failed}
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# What a GPU changes",
        "",
        "Made by `python -m benchmarks.gpu BUNDLE DATA`; all figures in `gpu.json`. Medians of turns in one process.",
        "",
        f"## Answers: {found['bundle']}",
        "",
        "| onnxruntime on | batch | time of the CPU's | per picture, ms |",
        "|---|---|---|---|",
        *(
            f"| {row['side']} | {row['batch']} | {row['of_cpu']:.3f} | {row['ms'] / row['batch']:.3f} |"
            for row in found["answers"]
        ),
        "",
        f"Beside the CPU, on {found['images']} pictures:",
        "",
        "| onnxruntime on | same path | same first evidence | largest difference: probability | contribution |",
        "|---|---|---|---|---|",
        *(
            f"| {side} | {row['path']:.2%} | {row['first_evidence']:.2%} | {row['probability']:.1e} | "
            f"{row['contribution']:.1e} |"
            for side, row in found["agreement"].items()
        ),
        *_missing(found["answers_missing"]),
        "",
        "## Training: forward and backward of a backbone",
        "",
        "| backbone | precision | batch | time of float32's | difference of features |",
        "|---|---|---|---|---|",
    ]
    for name, measured in found["training"].items():
        lines += [
            f"| {name} | {row['side']} | {row['batch']} | {row['of_first']:.3f} | {row['difference']:.1e} |"
            for row in measured["rows"]
        ]
    for measured in found["training"].values():
        lines += _missing(measured["missing"])
    return "\n".join([*lines, "", described(found["machine"])]) + "\n"


def _missing(sides: dict[str, str]) -> list[str]:
    return [line for side, why in sides.items() for line in ("", f"Not measured: {side} ({why}).")]


def main() -> int:
    """Measure and write the results; exit with 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="an exported bundle with model.onnx")
    parser.add_argument("data", type=Path, help="pictures of its classes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=512, help="pictures whose answers are compared")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, metavar="NAME")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures of training, in pixels")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: PyTorch finds no CUDA GPU here, so there is nothing to measure; run it on a machine with a GPU and "
            "a PyTorch for CUDA (nvidia-smi shows the GPU)",
            file=sys.stderr,
        )
        return 2
    backbones = tuple(options.backbones)
    found = measure(options.bundle, options.data, options.split, options.images, backbones, options.size)
    text = table(found)
    write_results("gpu", found, text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
