"""Measure writing, loading and running the graphs of 10,000 leaves and 100,000 prototypes. One command:

    python -m benchmarks.head.scale

The tree is random and uneven, with four levels. One process writes the full and the routed graphs and measures its time
and peak memory; another loads them and runs them in turns. Weights are random, but the last layers are so large that
one leaf stands out, as in a trained network; the results say how often the certificate holds. Writes
benchmarks/results/scale.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import described, machine, write_results

SIZE, DIMENSIONS, TOP_K = 224, 128, 10
FULL = "full.onnx"
# The numbers of nodes to expand at every level.
WIDTHS = (2, 5)
ROUTED = {f"routed-{width}.onnx": width for width in WIDTHS}


def leaf_paths(leaves: int) -> list[str]:
    """The paths of this number of leaves, below 20 nodes, about 150 nodes and about 1,000 nodes of uneven sizes. About
    a tenth of the nodes at the second and third level are leaves themselves."""
    generator = np.random.default_rng(0)
    paths: list[tuple[int, ...]] = [(node,) for node in range(20)]
    found: list[tuple[int, ...]] = []
    for wanted in (150, 1_000, leaves):
        inner = [path for path in paths if len(path) == 1 or generator.random() > 0.1]
        found += sorted(set(paths) - set(inner))
        wanted -= len(found) if wanted == leaves else 0
        shares = generator.gamma(1.5, size=len(inner))
        sizes = 2 + generator.multinomial(wanted - 2 * len(inner), shares / shares.sum())
        paths = [(*path, child) for path, size in zip(inner, sizes, strict=True) for child in range(size)]
    return ["/".join(map(str, path)) for path in (*found, *paths)]


def resident() -> float:
    """The peak resident memory of this process in MiB (Linux, VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def write(folder: str, leaves: int, prototypes: int, backbone_name: str) -> dict[str, Any]:
    """Write both graphs, each with the backbone."""
    import torch

    from export.graph import ExplainedGraph, RoutedGraph, write_onnx
    from protoserve.networks.backbones import backbone
    from protoserve.networks.head import PrototypeHead
    from protoserve.networks.network import PrototypeNetwork
    from protoserve.taxonomy import Taxonomy, competing_groups

    torch.manual_seed(0)
    place = Path(folder)
    began = time.perf_counter()
    tree = Taxonomy.from_paths(leaf_paths(leaves))
    nodes = [node for group in competing_groups(tree, "hierarchical") for node in group.children]
    shares = np.diff(np.linspace(0, prototypes, len(nodes) + 1).round().astype(int))
    children = [node for node, share in zip(nodes, shares, strict=True) for _ in range(share)]
    head = PrototypeHead(tree, children, DIMENSIONS, unit_length=True)
    with torch.no_grad():
        head.prototypes.normal_()
        head.weight.copy_(20.0 * torch.randn_like(head.weight) * head.own_mask)
    network = PrototypeNetwork(backbone(backbone_name), head, None).eval()
    built = time.perf_counter() - began
    example = torch.randint(0, 255, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    found: dict[str, Any] = {
        "leaves": len(tree.leaves),
        "nodes": len(tree.nodes),
        "groups": len(tree.groups),
        "largest_group": max(len(group.children) for group in tree.groups),
        "prototypes": len(children),
        "buckets": len(head.grouping.buckets),
        "build_seconds": built,
    }
    # What the graph must hold: backbone, add-on layer, prototypes and the last layers' own weights.
    weights = sum(value.numel() for value in network.state_dict().values()) - head.weight.numel()
    weights += int(head.weight_mask.sum())
    for name in (FULL, *ROUTED):
        began = time.perf_counter()
        if name == FULL:
            graph: Any = ExplainedGraph(network, TOP_K, example).eval()
        else:
            graph = RoutedGraph(network, TOP_K, ROUTED[name]).eval()
        write_onnx(graph, example, place / name, {})
        found[name] = {
            "seconds": time.perf_counter() - began,
            "bytes": (place / name).stat().st_size,
            "over_weights": (place / name).stat().st_size / (4 * weights),
        }
        print(json.dumps({name: found[name]}), file=sys.stderr)
    found["peak_mib"] = resident()
    return found


def ask(folder: str, rounds: int, threads: int) -> dict[str, Any]:
    """Load all graphs and ask them in turns, one image at a time."""
    import onnxruntime

    from benchmarks.head.cost import session

    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    began = time.perf_counter()
    sessions = {name: session(Path(folder) / name) for name in (FULL, *ROUTED)}
    loaded = time.perf_counter() - began
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    certain, same = dict.fromkeys(ROUTED, 0), dict.fromkeys(ROUTED, 0)
    for number in range(rounds):
        noise = generator.integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
        image = noise.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
        found = {}
        for name in list(sessions)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            found[name] = sessions[name].run(["path"] if name == FULL else ["path", "certain"], {"image": image})
            seconds[name].append(time.perf_counter() - began)
        for name in ROUTED:
            path, sure = found[name]
            certain[name] += int(sure[0])
            same[name] += int(sure[0] and np.array_equal(path, found[FULL][0]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "load_seconds": loaded,
        "ms": {name: 1e3 * median for name, median in medians.items()},
        "times_faster": {name: medians[FULL] / medians[name] for name in ROUTED},
        "certain": {name: certain[name] / rounds for name in ROUTED},
        "same_where_certain": {name: same[name] / max(1, certain[name]) for name in ROUTED},
        "peak_mib": resident(),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    written, asked, setting = results["written"], results["asked"], results["setting"]
    lines = [
        "# Scale",
        "",
        "Made by `python -m benchmarks.head.scale`; all figures in `scale.json`.",
        "",
        f"{written['leaves']:,} leaves in {written['groups']:,} groups (the largest of {written['largest_group']} "
        f"nodes), {written['prototypes']:,} prototypes of {DIMENSIONS} dimensions, {setting['backbone']} at {SIZE} "
        f"pixels, random weights; onnxruntime with {setting['threads']} threads, one image at a time, medians of "
        f"{setting['rounds']} rounds, all graphs in turns. *Routed, N* expands the N most probable nodes of every "
        "level; the random last layers are so large that its certificate holds for these pictures.",
        "",
        "| | written in, s | file over its weights | answer, ms | times faster than full | certificate held | "
        "same path where it held |",
        "|---|---|---|---|---|---|---|",
        f"| full | {written[FULL]['seconds']:.0f} | {written[FULL]['over_weights']:.2f} | {asked['ms'][FULL]:.1f} "
        "| | | |",
    ]
    for name, width in ROUTED.items():
        lines.append(
            f"| routed, {width} | {written[name]['seconds']:.0f} | {written[name]['over_weights']:.2f} | "
            f"{asked['ms'][name]:.1f} | **{asked['times_faster'][name]:.1f}** | {100 * asked['certain'][name]:.0f} % | "
            f"{100 * asked['same_where_certain'][name]:.0f} % |"
        )
    lines += [
        "",
        f"Times include the backbone. Peak memory: {written['peak_mib']:,.0f} MiB for writing all three graphs, "
        f"{asked['peak_mib']:,.0f} MiB for running them.",
        "",
        described(results["machine"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=10_000)
    parser.add_argument("--prototypes", type=int, default=100_000)
    parser.add_argument("--backbone", default="mobilenet_v3_small")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            written = pool.submit(write, folder, options.leaves, options.prototypes, options.backbone).result()
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            asked = pool.submit(ask, folder, options.rounds, options.threads).result()
    setting = {"backbone": options.backbone, "rounds": options.rounds, "threads": options.threads}
    results = {"machine": machine(), "setting": setting, "written": written, "asked": asked}
    write_results("scale", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
