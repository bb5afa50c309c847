"""What an explanation costs: the exported graph beside the same backbone with a plain linear classifier, and the fused
head beside one written as in the published code. One command (`make bench-head`):

    python -m benchmarks.head.cost

Once with latent vectors and a similarity as published (free vectors, ε = 1e-4), and once as the shipped configurations
have them (unit vectors, ε = 0.08): the first is so steep that distances near a prototype have to be computed again. The
third is the shipped form routed (`protoserve export --to onnx-routed`), which scores only what can still win.

Everything runs in onnxruntime, both sides of a comparison in one process and in turns, so that whatever else the
machine does meets both alike; the figures are ratios of medians. Weights are random, which changes no time; but a
routed head's last layers are drawn so wide that its certificate holds as in trained networks
(`benchmarks/accuracy/routing.py`).
Answers of the two heads are compared before they are timed. Results in benchmarks/results/head.{json,md}.
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
import onnxruntime
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

# How long each comparison goes on at least, in how many processes those with a plain classifier are made.
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
    """[batch, D, rows, columns] random cells of one of the `FORMS`."""
    drawn = np.random.default_rng(seed)
    if form == "published":
        return drawn.random((batch, DIMENSIONS, CELLS, CELLS), dtype=np.float32)
    latent = drawn.standard_normal((batch, DIMENSIONS, CELLS, CELLS), dtype=np.float32)
    return np.asarray(latent / np.linalg.norm(latent, axis=1, keepdims=True))


def session(file: Path) -> Session:
    """The file in onnxruntime, on the threads that all sessions share: threads of its own go on spinning for a while
    after a run, at the cost of whoever's turn is next."""
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def in_turns(tasks: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """Seconds of every task in every round; the order is turned round from one to the next. There are so many `rounds`,
    and more until so many `seconds` have passed: what takes milliseconds would else be measured in one mood of the
    machine."""
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
    """Multiply-adds a second of a large product in onnxruntime: what the machine can do."""
    apart(write_product, folder / "product.onnx")
    running = session(folder / "product.onnx")
    left = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    seconds = in_turns({"product": lambda: running.run(None, {"left": left})}, rounds)["product"]
    return SIDE**3 / min(seconds)


def apart(task: Callable[..., Any], *arguments: Any) -> Any:
    """What the task returns in a process of its own: exporting leaves PyTorch's threads and memory behind, which no
    process that serves has."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def ask_both(
    explained: Path, plain: Path, batch: int, rounds: int, threads: int, plain_first: bool
) -> dict[str, float]:
    """Median seconds of both graphs in this process, and for how many pictures a routed one is certain."""
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
    """Every case: median milliseconds of both graphs, their ratio, and the floor: the product alone, and the add-on
    layer's, at the machine's rate. Medians over processes, half of which load the plain graph first: where two sessions
    lie in memory moves their ratio by a hundredth or two."""
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
    """The greatest difference of a child's conditional log-probability between the two heads, on random latents: of any
    child, or of those on the path where a routed head is certain."""
    latent = random_latent(4, 1, form)
    outputs = dict(zip([o.name for o in ours.get_outputs()], ours.run(None, {"latent": latent}), strict=True))
    with np.errstate(divide="ignore"):
        theirs_conditional = np.log(theirs.run(None, {"latent": latent})[0])
    parent = head.taxonomy.parent
    nodes = np.array([node for group in competing_groups(head.taxonomy, head.kind) for node in group.children])
    if form == ROUTED:
        sure = outputs["certain"]
        if not sure.any():
            raise SystemExit("the routed head is certain of no random latent; nothing was timed")
        place = np.empty(len(head.taxonomy.nodes), dtype=np.int64)
        place[nodes] = np.arange(len(nodes))
        along = np.diff(outputs["path_log_probability"][sure], axis=1, prepend=np.float32(0.0))
        wanted = np.take_along_axis(theirs_conditional[sure], place[outputs["path"][sure]], axis=1)
        return float(np.abs(along - wanted).max())
    joint = np.concatenate([outputs["log_probability"], np.zeros((len(latent), 1), np.float32)], axis=1)
    conditional = joint[:, nodes] - joint[:, parent[nodes]]
    return float(np.abs(conditional - theirs_conditional).max())


def beside_published(folder: Path, rounds: int, form: str) -> list[dict[str, Any]]:
    """Both heads alone, from the latent map on: median milliseconds and how many times faster ours is."""
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
        f"onnxruntime on the CPU with {results['threads']} threads, {SIZE} pixels, {DIMENSIONS} dimensions, "
        f"{CELLS} × {CELLS} cells, random weights; medians of at least {results['rounds']} rounds and "
        f"{SECONDS:.0f} seconds, both sides in turns in one process; beside a plain classifier in {PROCESSES} "
        "processes one after the other, half of which load the plain graph first, and the median of their ratios. The "
        f"graph answers with the probabilities of all nodes, the path, and at every level the {TOP_K} prototypes that "
        "contribute most, with their activation maps; a routed one with the probabilities along the path alone.",
        "",
        "Beside the same backbone with a plain linear classifier. The floor is what the multiply-adds of the add-on "
        "layer and of the product of prototypes (of a routed graph: those that it scores) and cells would cost at the "
        f"rate of a large matrix product on this machine ({results['rate'] / 1e9:.0f} · 10⁹ a second), and nothing "
        "else.",
        "",
        "*Form*: latent vectors and similarity as published (free vectors, ε = 1e-4, so steep that distances near a "
        "prototype are computed again from the difference), or as the shipped configurations have them (unit vectors, "
        f"ε = 0.08), or these routed, with {ROUTED_WIDTH} nodes of every level expanded (*held*: for how many of the "
        "pictures the certificate did; with the others the full graph has to answer as well).",
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
        "Beside a head written as in the published code (a loop over parents, a convolution with ones for ‖z‖², "
        "similarities at all cells, dense last layers, all maps returned), same weights, from the latent map on. It is "
        "exported without the exporter's own optimiser, which takes ten minutes for 318 parents; with it, it was 6 to "
        "8 % faster at 2,000 prototypes, so take as much off:",
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
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=[*FORMS], help="leave others out")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenet_v3_large"], help="leave others out")
    options = parser.parse_args()
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
