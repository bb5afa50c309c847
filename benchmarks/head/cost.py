"""Measure the cost of an explanation. One command (`make bench-head`):

    python -m benchmarks.head.cost

Compares the exported graph with the same backbone and a plain linear classifier, and the fused head with one written as
in the published code, each in three forms. *Published* has free latent vectors and a steep similarity (ε = 1e-4), for
which distances near a prototype have to be computed again. *Shipped* has unit vectors and ε = 0.08, as the shipped
configurations do. *Routed* is the shipped form of `protoserve export --to onnx-routed`, which scores only the nodes
that can still win.

Both sides of a comparison run in onnxruntime, in one process and in turns, so that other load on the machine affects
both alike. The figures are ratios of medians. Weights are random, which does not affect the times, but the last layers
of a routed head are so large that its certificate holds as often as in trained networks
(`benchmarks/accuracy/routing.py`). The answers of the two heads are compared before they are timed. Writes
benchmarks/results/head.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.head.graphs import (
    CELLS,
    DIMENSIONS,
    FORMS,
    ROUTED,
    SIDE,
    SIZE,
    TOP_K,
    random_head,
    write_heads,
    write_networks,
    write_product,
)
from benchmarks.measuring import described, machine, write_results
from export.targets.table import ROUTED_WIDTH
from protoserve.networks.head import PrototypeHead
from protoserve.taxonomy import competing_groups

# The least duration of a comparison, and the number of processes for each comparison with a plain classifier.
SECONDS, PROCESSES = 12.0, 6
Session: TypeAlias = Any  # onnxruntime has no types


@dataclass(frozen=True)
class Case:
    """One comparison with the plain classifier."""

    backbone: str
    prototypes: int
    batch: int


CASES = (
    Case("resnet50", 2_000, 1),
    Case("mobilenet_v3_large", 2_000, 1),
    Case("mobilenet_v3_large", 2_000, 8),
    Case("mobilenet_v3_large", 20_000, 1),
    Case("mobilenet_v3_large", 20_000, 8),
)
# The numbers of prototypes that are compared with the published code.
PUBLISHED = (2_000, 20_000)


def random_latent(batch: int, seed: int, form: str) -> NDArray[np.float32]:
    """[batch, D, rows, columns]: random cells of one of the `FORMS`."""
    drawn = np.random.default_rng(seed)
    if form == "published":
        return drawn.random((batch, DIMENSIONS, CELLS, CELLS), dtype=np.float32)
    latent = drawn.standard_normal((batch, DIMENSIONS, CELLS, CELLS), dtype=np.float32)
    return np.asarray(latent / np.linalg.norm(latent, axis=1, keepdims=True))


def session(file: Path) -> Session:
    """Load a file in onnxruntime, on threads shared by all sessions. A session's own threads would keep spinning after
    a run and slow down the next side."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def in_turns(tasks: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """The seconds of every task in every round; each round reverses the order of the tasks.

    Runs at least this number of `rounds` and for at least this number of `seconds`, so that short tasks are not all
    measured under the same load of the machine.
    """
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    started, number = time.perf_counter(), 0
    while number < rounds or time.perf_counter() - started < seconds:
        for name in list(tasks)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            tasks[name]()
            found[name].append(time.perf_counter() - began)
        number += 1
    return found


def matrix_rate(folder: Path, rounds: int) -> float:
    """Multiply-adds per second of a large matrix product in onnxruntime, an estimate of the machine's peak."""
    apart(write_product, folder / "product.onnx")
    running = session(folder / "product.onnx")
    left = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    seconds = in_turns({"product": lambda: running.run(None, {"left": left})}, rounds)["product"]
    return SIDE**3 / min(seconds)


def apart(task: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task in a process of its own and return its result. Export leaves PyTorch's threads and memory behind,
    which a serving process does not have."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def ask_both(
    explained: Path, plain: Path, batch: int, rounds: int, threads: int, plain_first: bool
) -> dict[str, float]:
    """The median seconds of both graphs in this process, and the share of pictures for which a routed one is
    certain."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    files = {"plain": plain, "explained": explained}
    sessions = {name: session(files[name]) for name in sorted(files, reverse=plain_first)}
    images = np.random.default_rng(0).integers(0, 255, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    tasks = {name: partial(sessions[name].run, None, {"image": images}) for name in files}
    found = {name: statistics.median(values) for name, values in in_turns(tasks, rounds, SECONDS / PROCESSES).items()}
    if "certain" in [output.name for output in sessions["explained"].get_outputs()]:
        found["certain"] = float(np.mean(sessions["explained"].run(["certain"], {"image": images})[0]))
    return found


def beside_plain(
    folder: Path, rounds: int, threads: int, cases: tuple[Case, ...], rate: float, form: str
) -> list[dict[str, Any]]:
    """For every case, the median milliseconds of both graphs, their ratio, and the floor.

    The floor counts only the multiply-adds of the prototypes and the add-on layer, at the machine's `rate`. Medians are
    over processes, half of which load the plain graph first, because the placement of two sessions in memory changes
    their ratio by a hundredth or two.
    """
    rows = []
    written: dict[tuple[str, int], int] = {}
    for case in cases:
        key = (case.backbone, case.prototypes)
        files = [folder / f"{name}-{case.backbone}-{case.prototypes}-{form}.onnx" for name in ("explained", "plain")]
        if key not in written:
            print(f"writing {case.backbone} with {case.prototypes:,} prototypes", file=sys.stderr)
            written[key] = apart(write_networks, case.backbone, case.prototypes, form, *files)
        found = [apart(ask_both, *files, case.batch, rounds, threads, bool(number % 2)) for number in range(PROCESSES)]
        medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
        ratios = [one["explained"] / one["plain"] for one in found]
        multiplied = case.batch * CELLS * CELLS * DIMENSIONS * written[key]
        rows.append(
            {
                "form": form,
                "backbone": case.backbone,
                "prototypes": case.prototypes,
                "batch": case.batch,
                "plain_ms": 1e3 * medians["plain"],
                "explained_ms": 1e3 * medians["explained"],
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "floor": 1.0 + multiplied / rate / medians["plain"],
                **({"certain": medians["certain"]} if form == ROUTED else {}),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def worst_difference(head: PrototypeHead, ours: Session, theirs: Session, form: str) -> float:
    """The largest difference of a child's conditional log-probability between the two heads, on random latents. For a
    routed head, only over the paths that it is certain of."""
    latent = random_latent(4, 1, form)
    outputs = dict(zip([o.name for o in ours.get_outputs()], ours.run(None, {"latent": latent}), strict=True))
    with np.errstate(divide="ignore"):
        theirs_conditional = np.log(theirs.run(None, {"latent": latent})[0])
    parent = head.taxonomy.parent
    nodes = np.array([node for group in competing_groups(head.taxonomy, head.kind) for node in group.children])
    if form == ROUTED:
        sure = outputs["certain"]
        if not sure.any():
            raise SystemExit("the routed head is not certain of any random latent; nothing was timed")
        place = np.empty(len(head.taxonomy.nodes), dtype=np.int64)
        place[nodes] = np.arange(len(nodes))
        along = np.diff(outputs["path_log_probability"][sure], axis=1, prepend=np.float32(0.0))
        wanted = np.take_along_axis(theirs_conditional[sure], place[outputs["path"][sure]], axis=1)
        return float(np.abs(along - wanted).max())
    joint = np.concatenate([outputs["log_probability"], np.zeros((len(latent), 1), np.float32)], axis=1)
    conditional = joint[:, nodes] - joint[:, parent[nodes]]
    return float(np.abs(conditional - theirs_conditional).max())


def beside_published(folder: Path, rounds: int, form: str) -> list[dict[str, Any]]:
    """The median milliseconds of both heads alone, from the latent map on, and their ratio."""
    rows = []
    for prototypes in PUBLISHED:
        head = random_head(prototypes, form)
        print(f"writing both heads with {prototypes:,} prototypes", file=sys.stderr)
        files = [folder / f"{name}-{prototypes}-{form}.onnx" for name in ("fused", "published")]
        apart(write_heads, prototypes, form, *files)
        ours, theirs = session(files[0]), session(files[1])
        difference = worst_difference(head, ours, theirs, form)
        if difference > 1e-3:
            raise SystemExit(f"the two heads differ by {difference:.2g} in a log-probability; nothing was timed")
        for batch in (1, 8):
            latent = random_latent(batch, 0, form)
            seconds = in_turns(
                {
                    "published": partial(theirs.run, None, {"latent": latent}),
                    "fused": partial(ours.run, None, {"latent": latent}),
                },
                rounds,
                SECONDS,
            )
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            rows.append(
                {
                    "form": form,
                    "prototypes": prototypes,
                    "parents": len(competing_groups(head.taxonomy, head.kind)),
                    "batch": batch,
                    "published_ms": 1e3 * medians["published"],
                    "fused_ms": 1e3 * medians["fused"],
                    "times_faster": medians["published"] / medians["fused"],
                    "worst_difference": difference,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# The head",
        "",
        "Made by `make bench-head`; all figures in `head.json`.",
        "",
        f"onnxruntime on the CPU with {results['threads']} threads, {SIZE} pixels, {DIMENSIONS} dimensions, {CELLS} × "
        f"{CELLS} cells, random weights; medians of at least {results['rounds']} rounds and {SECONDS:.0f} seconds, "
        "both sides in turns in one process. Comparisons with a plain classifier are medians of the ratios of "
        f"{PROCESSES} processes, run one after the other, half of which load the plain graph first. The graph returns "
        f"the probabilities of all nodes, the path, and at every level the {TOP_K} prototypes that contribute most, "
        "with their activation maps; a routed graph returns only the probabilities along the path.",
        "",
        "Compared with the same backbone and a plain linear classifier. *Floor*: only the multiply-adds of the add-on "
        "layer and of the product of prototypes (of a routed graph: those that it scores) and cells, at the rate of a "
        f"large matrix product on this machine ({results['rate'] / 1e9:.0f} · 10⁹ per second).",
        "",
        "*Form*: *published* has free latent vectors and ε = 1e-4, so steep that distances near a prototype are "
        "computed again from the difference. *Shipped* has unit vectors and ε = 0.08, as the shipped configurations "
        f"do. *Routed* expands {ROUTED_WIDTH} nodes of every level of the shipped form. *Held*: the share of pictures "
        "for which its certificate holds; for the others, the full graph has to answer, too.",
        "",
        "| form | backbone | prototypes | batch | plain, ms | explained, ms | ratio | floor | held |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["plain"]:
        held = f"{100 * row['certain']:.0f} %" if "certain" in row else ""
        lines.append(
            f"| {row['form']} | {row['backbone']} | {row['prototypes']:,} | {row['batch']} | {row['plain_ms']:.2f} | "
            f"{row['explained_ms']:.2f} | **{row['ratio']:.3f}** | {row['floor']:.3f} | {held} |"
        )
    lines += [
        "",
        "Compared with a head written as in the published code (a loop over parents, a convolution with ones for ‖z‖², "
        "similarities at all cells, dense last layers, all maps returned), with the same weights, from the latent map "
        "on. The published head is exported without the exporter's own optimiser, which takes ten minutes for 318 "
        "parents. With it, it was 6 to 8 % faster at 2,000 prototypes, so subtract as much:",
        "",
        "| form | prototypes | parents | batch | published, ms | fused, ms | times faster | worst difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["published"]:
        counts = f"{row['prototypes']:,} | {row['parents']} | {row['batch']}"
        lines.append(
            f"| {row['form']} | {counts} | {row['published_ms']:.2f} | {row['fused_ms']:.2f} | "
            f"**{row['times_faster']:.1f}** | {row['worst_difference']:.1e} |"
        )
    lines += ["", described(results["machine"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=[*FORMS], help="measure only these")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenet_v3_large"], help="measure only these")
    options = parser.parse_args()
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(options.threads, 1)
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = Path(scratch)
        rate = matrix_rate(folder, 20)
        cases = tuple(case for case in CASES if case.backbone in options.backbones)
        results: dict[str, Any] = {
            "machine": machine(),
            "threads": options.threads,
            "rounds": options.rounds,
            "rate": rate,
            "plain": [
                row
                for form in options.forms
                for row in beside_plain(folder, options.rounds, options.threads, cases, rate, form)
            ],
            "published": [row for form in options.forms for row in beside_published(folder, options.rounds, form)],
        }
    write_results("head", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
