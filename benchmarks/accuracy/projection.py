"""Measure projection: its time relative to a forward pass of the whole network, and its memory. One command:

    python -m benchmarks.accuracy.projection [--data DIR --weights FILE]

Both process the same decoded training pictures, batch by batch and in turns, so that other load on the machine affects
both alike. The time of projection includes computing the latent maps. Without --data, pictures are drawn first
(`protoserve data render`). Writes benchmarks/results/projection.{json,md}.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import described, machine, write_results
from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import NetworkDescription, build
from protoserve.networks.network import PrototypeNetwork
from protoserve.taxonomy import Taxonomy, competing_groups
from training.prototypes.projection import complete, search
from training.rendered import render_dataset

DIMENSIONS, REDUCED = 128, 256
RULE = InputRule(height=224, width=224, resize="crop")
LIMIT = 1.3
# For the memory: random latent maps, 7 × 7 cells, 10,000 prototypes on a tree of 10 × 10 leaves.
SIZES = (1_000, 4_000, 16_000)
CELLS, MOST_PROTOTYPES = 7, 10_000


def prototype_children(taxonomy: Taxonomy, count: int) -> list[int]:
    """`count` prototypes, spread evenly over all competing nodes, in the head's order."""
    nodes = [node for group in competing_groups(taxonomy, "hierarchical") for node in group.children]
    shares = np.diff(np.linspace(0, count, len(nodes) + 1).round().astype(int))
    return [node for node, share in zip(nodes, shares, strict=True) for _ in range(share)]


def decoded(dataset: Dataset, count: int, file: Path) -> np.ndarray[Any, Any]:
    """uint8 [count, H, W, 3] on disk: pictures evenly spaced over the data set, so that all classes are present."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, RULE.height, RULE.width, 3))
    for place, number in enumerate(chosen(dataset, count).tolist()):
        array[place] = fit(dataset.picture(number), RULE).array
    return array


def chosen(dataset: Dataset, count: int) -> np.ndarray[Any, Any]:
    """The numbers of `count` images, evenly spaced."""
    return np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)


@torch.inference_mode()
def one_round(
    network: PrototypeNetwork, pictures: np.ndarray[Any, Any], leaves: Tensor, batch: int, first: int
) -> tuple[float, float]:
    """The seconds of a forward pass of the whole network and of projection, on the same pictures in turns."""
    forward = 0.0

    def latents() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        nonlocal forward
        for turn, start in enumerate(range(0, len(pictures), batch)):
            numbers = torch.arange(start, min(len(pictures), start + batch))
            images = torch.from_numpy(np.array(pictures[start : start + batch]))
            latent = None
            for task in (0, 1) if (turn + first) % 2 else (1, 0):
                if task == 0:
                    began = time.perf_counter()
                    network(images)
                    forward += time.perf_counter() - began
                else:
                    latent = network.latent(network.features(images))
            assert latent is not None
            yield numbers, leaves[numbers], latent

    began = time.perf_counter()
    complete(network.head, search(network.head, latents()))
    return forward, time.perf_counter() - began - forward


def times(
    dataset: Dataset, counts: list[int], images: int, rounds: int, batch: int, backbone: str, weights: str | None
) -> dict[str, Any]:
    """For each number of prototypes, the seconds of both and the ratio of every round."""
    networks = {}
    for count in counts:
        description = NetworkDescription(
            kind="hierarchical",
            taxonomy=dataset.taxonomy.to_dict(),
            input=RULE,
            backbone=backbone,
            reduced=REDUCED,
            dimensions=DIMENSIONS,
            prototype_child=prototype_children(dataset.taxonomy, count),
        )
        torch.manual_seed(0)
        network = build(description, weights)
        assert isinstance(network, PrototypeNetwork)
        networks[count] = network.eval()
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as scratch:
        pictures = decoded(dataset, images, Path(scratch) / "pictures.npy")
        leaves = torch.from_numpy(dataset.leaves[chosen(dataset, images)])
        with torch.inference_mode():
            for network in networks.values():
                network(torch.from_numpy(np.array(pictures[:batch])))
        for number in range(rounds):
            for count, network in networks.items():
                found[count].append(one_round(network, pictures, leaves, batch, number))
                forward, projection = found[count][-1]
                print(
                    f"round {number + 1}, {count} prototypes: forward {forward:.1f} s, projection {projection:.1f} s, "
                    f"ratio {projection / forward:.3f}",
                    file=sys.stderr,
                )
    return {
        str(count): {
            "forward_seconds": statistics.median(forward for forward, _ in pairs),
            "projection_seconds": statistics.median(projection for _, projection in pairs),
            "ratio": statistics.median(projection / forward for forward, projection in pairs),
            "ratios": [projection / forward for forward, projection in pairs],
        }
        for count, pairs in found.items()
    }


def peak_memory(images: int) -> float:
    """The MiB by which the peak memory of a process grows while it searches `images` random latent maps."""
    taxonomy = Taxonomy.from_paths([f"{parent}/{child}" for parent in "abcdefghij" for child in "klmnopqrst"])
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, MOST_PROTOTYPES), DIMENSIONS).eval()
    generator = torch.Generator().manual_seed(0)

    def latents() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, images, 64):
            numbers = torch.arange(start, min(images, start + 64))
            maps = torch.rand(len(numbers), DIMENSIONS, CELLS, CELLS, generator=generator)
            yield numbers, numbers % len(taxonomy.leaves), maps

    before = resident("VmRSS")
    complete(head, search(head, latents()))
    return resident("VmHWM") - before


def resident(which: str) -> float:
    """The resident memory of this process in MiB on Linux, now (VmRSS) or at its peak (VmHWM). `getrusage` would
    include the peak of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


def memory() -> dict[str, float]:
    """`peak_memory` of every size, each in a process of its own."""
    found = {}
    for size in SIZES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[str(size)] = pool.submit(peak_memory, size).result()
        print(f"memory, {size} images: {found[str(size)]:.0f} MiB", file=sys.stderr)
    return found


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    setting = results["setting"]
    lines = [
        "# Projection",
        "",
        f"Made by `python -m benchmarks.accuracy.projection --data DIR --weights FILE --rounds {setting['rounds']}`; "
        "all figures in `projection.json`.",
        "",
        f"{setting['images']:,} training pictures of {setting['data']} ({setting['leaves']} leaves), "
        f"{setting['backbone']}, 224 pixels, 128 dimensions, batches of {setting['batch']}, {setting['threads']} "
        f"threads; medians of {setting['rounds']} rounds, both measured in turns on every batch. The target is a ratio "
        f"below {LIMIT}.",
        "",
        "| prototypes | forward pass of the whole network, s | projection, s | ratio | of all rounds |",
        "|---|---|---|---|---|",
    ]
    for count, row in results["times"].items():
        seconds = f"{row['forward_seconds']:.1f} | {row['projection_seconds']:.1f}"
        spread = f"{min(row['ratios']):.3f}–{max(row['ratios']):.3f}"
        lines.append(f"| {int(count):,} | {seconds} | **{row['ratio']:.3f}** | {spread} |")
    lines += [
        "",
        "At 10,000 prototypes, the whole network compares every cell with all of them, and projection only with those "
        "of the picture's own classes.",
        "",
        "Memory that the search of 10,000 prototypes adds at most, over random latent maps of 7 × 7 cells: "
        + ", ".join(f"{int(size):,} images {value:.0f} MiB" for size, value in results["memory_mib"].items())
        + ".",
        "",
        described(results["machine"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set with a train folder; by default drawn pictures")
    parser.add_argument("--weights", help="a state dict or a torchvision name; by default random")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--prototypes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--images", type=int, help="limit on training pictures; by default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data
        if data is None:
            data = Path(scratch) / "drawn"
            render_dataset(data, per_leaf=20, size=96)
        dataset = read_split(data, "train", read_taxonomy(data))
        images = min(len(dataset), options.images or len(dataset))
        found = times(
            dataset, options.prototypes, images, options.rounds, options.batch, options.backbone, options.weights
        )
    results: dict[str, Any] = {
        "machine": machine(),
        "setting": {
            "data": "drawn pictures" if options.data is None else options.data.name,
            "images": images,
            "leaves": len(dataset.taxonomy.leaves),
            "backbone": options.backbone,
            "batch": options.batch,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
        },
        "times": found,
        "memory_mib": memory(),
    }
    write_results("projection", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
