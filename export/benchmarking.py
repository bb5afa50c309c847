"""Benchmarks the files of a bundle side by side: size, time, accuracy at every level, and the evidence that is kept."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from export.accuracy import JUDGED, in_batches
from export.judging import agreement
from export.parity import Runtime
from export.records import Agreement, read_parity
from export.targets.listing import target_parts
from export.targets.opening import open_target
from export.targets.table import target_named
from protoserve.bundle.folder import Bundle
from protoserve.data.checking import without_broken
from protoserve.data.dataset import Dataset, read_labelled
from protoserve.errors import BundleError, InputError, MissingExtraError, nearest
from protoserve.images.fitting import fit
from protoserve.inference.routed_engine import RoutedEngine
from protoserve.run.record import Record

# The file that the others are compared with.
REFERENCE: Final = "onnx"
BATCHES: Final = (1, 8)
# Seconds after which the threads of a runtime sleep.
_SPINNING: Final = 0.05
_PACKAGES: Final = ("onnxruntime-gpu", "onnxruntime", "torch", "openvino", "executorch", "numpy")


class TargetFigures(Record):
    """What a target's file costs and keeps.

    - `megabytes` of its file and companions, 10⁶ bytes;
    - `milliseconds` of a picture, by batch size: medians over interleaved rounds;
    - `time_ratio`: the median over rounds of its time to that of `onnx` in the same round, by batch size;
    - `processor_ratio`: the same of the processor's time, over all threads, which other work hardly changes;
    - `evidence`: its answers beside those of `onnx` (see `export.records.Agreement`).
    """

    file: str
    runtime: str
    precision: str
    megabytes: float
    milliseconds: dict[int, float]
    time_ratio: dict[int, float]
    processor_ratio: dict[int, float]
    evidence: Agreement


class BenchmarkReport(Record):
    """The figures of all targets of a bundle, by name, measured on `pictures` pictures of a split.

    `skipped` maps a target whose runtime is not installed to the reason.
    """

    bundle: str
    split: str
    pictures: int
    rounds: int
    machine: dict[str, str]
    targets: dict[str, TargetFigures]
    skipped: dict[str, str]


@dataclass(frozen=True)
class _Contestant:
    """An open file. `answer` takes the indices of pictures and returns its outputs; `work` only computes them, as a
    host would."""

    answer: Callable[[Sequence[int]], Mapping[str, NDArray[Any]]]
    work: Callable[[Sequence[int]], object]


def benchmark(
    bundle: Bundle,
    data: Path,
    split: str = "test",
    *,
    targets: Collection[str] = (),
    limit: int | None = None,
    rounds: int = 20,
    report: Callable[[str], None] = lambda message: None,
) -> BenchmarkReport:
    """Benchmark a bundle's files, or those of `targets`, on the CPU, each in its own runtime as it is by default.

    Files take turns in every one of the `rounds`, so that whatever else the machine does slows all of them. `limit` is
    the number of pictures, spread over the split, that accuracy and evidence are measured on; None: all. Calls `report`
    with a line of text before each step.

    Raises InputError for a target that the bundle does not have, for a split that does not exist and for pictures that
    can't be read.
    """
    files = bundle.manifest.files
    for target in targets:
        if target not in files:
            raise InputError(f"--targets {target}: the bundle has only {', '.join(files)}{nearest(target, files)}")
    chosen = [target for target in files if target == REFERENCE or not targets or target in targets]
    report(f"reading {data}")
    dataset, _ = without_broken(read_labelled(data, split, bundle.taxonomy, left_out=bundle.left_out), skip=False)
    if limit is not None and limit < len(dataset):
        dataset = dataset.subset(np.linspace(0, len(dataset) - 1, limit).astype(np.int64))
    fitted = np.stack([fit(dataset.picture(index), bundle.input).array for index in range(len(dataset))])
    contestants: dict[str, _Contestant] = {}
    skipped: dict[str, str] = {}
    for target in chosen:
        report(f"opening {files[target]}")
        if target_named(target).routed and read_parity(bundle.directory)[target].resize is not None:
            skipped[target] = (
                "a routed graph that resizes has no engine beside the full one; export it without resizing"
            )
            continue
        try:
            contestants[target] = _contestant(bundle, target, dataset, fitted)
        except MissingExtraError as error:
            skipped[target] = str(error)
    answers = {}
    for target, contestant in contestants.items():
        report(f"answering {len(dataset)} pictures with {files[target]}")
        answers[target] = _answers(contestant, len(dataset))
    milliseconds: dict[str, dict[int, float]] = {target: {} for target in contestants}
    ratios: dict[str, dict[int, float]] = {target: {} for target in contestants}
    processor: dict[str, dict[int, float]] = {target: {} for target in contestants}
    for size in BATCHES:
        report(f"timing batches of {size} in {rounds} rounds")
        seconds = _timed(contestants, size, rounds, len(dataset))
        for target, times in seconds.items():
            milliseconds[target][size] = round(1000 * float(np.median(times[:, 0])) / size, 3)
            ratio = np.median(times / seconds[REFERENCE], axis=0)
            ratios[target][size], processor[target][size] = (round(float(value), 3) for value in ratio)
    expected = answers[REFERENCE]
    return BenchmarkReport(
        bundle=bundle.manifest.name,
        split=split,
        pictures=len(dataset),
        rounds=rounds,
        machine=machine(),
        targets={
            target: TargetFigures(
                file=files[target],
                runtime=target_named(target).runtime,
                precision=target_named(target).precision.name,
                megabytes=round(sum(part.stat().st_size for part in target_parts(bundle.file(target))) / 1e6, 2),
                milliseconds=milliseconds[target],
                time_ratio=ratios[target],
                processor_ratio=processor[target],
                evidence=agreement(expected, found, dataset.leaves, bundle.taxonomy),
            )
            for target, found in answers.items()
        },
        skipped=skipped,
    )


def _contestant(bundle: Bundle, target: str, dataset: Dataset, fitted: NDArray[np.uint8]) -> _Contestant:
    """Open a target; raises MissingExtraError without its runtime."""
    report = read_parity(bundle.directory).get(target)
    if report is None:
        raise BundleError(f"{bundle.directory}: parity.json does not name {target}; export the bundle again")
    row, file = target_named(target), bundle.file(target)
    if row.routed:
        # A host runs the routed graph, and the full one where it is not certain.
        engine, answer = RoutedEngine(file, bundle.file(REFERENCE)), open_target(bundle, target).run
        return _Contestant(lambda indices: answer(fitted[indices]), lambda indices: engine.run(fitted[indices]))
    run = row.run(file)
    if report.resize is not None:
        return _one_by_one(run, lambda index: np.asarray(dataset.picture(index).picture)[None])
    sizes = list(report.batches)
    if len(sizes) > 1:
        return _Contestant(lambda indices: run(fitted[indices]), lambda indices: run(fitted[indices]))
    return _in_fixed_batches(run, fitted, sizes[0])


def _one_by_one(run: Runtime, picture: Callable[[int], NDArray[np.uint8]]) -> _Contestant:
    """A file that takes one picture of any size. Decoding is not part of its time."""
    decoded: dict[int, NDArray[np.uint8]] = {}

    def work(indices: Sequence[int]) -> list[Mapping[str, NDArray[Any]]]:
        for index in indices:
            if index not in decoded:
                decoded[index] = picture(index)
        return [run(decoded[index]) for index in indices]

    return _Contestant(lambda indices: _joined([run(picture(index)) for index in indices]), work)


def _in_fixed_batches(run: Runtime, fitted: NDArray[np.uint8], size: int) -> _Contestant:
    """A file of one batch size: its last batch is filled up with pictures again."""

    def work(indices: Sequence[int]) -> list[Mapping[str, NDArray[Any]]]:
        return [run(batch) for batch in in_batches(fitted[indices], size, whole=True)]

    def answer(indices: Sequence[int]) -> Mapping[str, NDArray[Any]]:
        return {name: array[: len(indices)] for name, array in _joined(work(indices)).items()}

    return _Contestant(answer, work)


def _joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in JUDGED}


def _answers(contestant: _Contestant, count: int) -> dict[str, NDArray[Any]]:
    """Answer all pictures, eight at a time."""
    return _joined([contestant.answer(range(start, min(start + 8, count))) for start in range(0, count, 8)])


def _timed(
    contestants: Mapping[str, _Contestant], size: int, rounds: int, count: int
) -> dict[str, NDArray[np.float64]]:
    """Time one batch of `size` pictures per file and round, in seconds: float64 [rounds, 2], by the clock and of the
    processor.

    Each round reverses the order of the files. Before its turn is timed, a file waits until the threads of the one
    before it no longer spin, and answers once, because that one left its own weights in the caches.
    """
    seconds: dict[str, list[tuple[float, float]]] = {target: [] for target in contestants}
    for turn in range(rounds):
        indices = [(turn * size + place) % count for place in range(size)]
        for target, contestant in list(contestants.items())[:: 1 if turn % 2 else -1]:
            time.sleep(_SPINNING)
            contestant.work(indices)
            began, busy = time.perf_counter(), time.process_time()
            contestant.work(indices)
            seconds[target].append((time.perf_counter() - began, time.process_time() - busy))
    return {target: np.array(times) for target, times in seconds.items()}


def machine() -> dict[str, str]:
    """Describe the machine: processor, its vector instructions that matter to 8 bits, system, and packages."""
    found = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        values = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        named = {name.strip(): value.strip() for name, value in values.items()}
        found["processor"] = named.get("model name", found["processor"])
        flags = named.get("flags", named.get("Features", "")).split()
        found["vectors"] = " ".join(
            flag for flag in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp", "i8mm") if flag in flags
        )
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(report: BenchmarkReport) -> Table:
    """Show the figures as a table: shares in percent, evidence by its least level."""
    first = report.targets[REFERENCE]
    levels = list(first.evidence.accuracy)
    shown = Table(
        "target",
        "MB",
        *(f"time × onnx, batch {size}" for size in BATCHES),
        f"CPU × onnx, batch {BATCHES[-1]}",
        *(f"{level.replace('_', ' ')}, %" for level in levels),
        "same first prototype, %",
        "evidence kept, %",
        title=f"{report.bundle} on {report.pictures} pictures of {report.split}",
        title_justify="left",
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows(report):
        shown.add_row(*row)
    return shown


def rows(report: BenchmarkReport) -> Iterator[list[str]]:
    """The rows of `table`, as texts."""
    for target, figures in report.targets.items():
        yield [
            target,
            f"{figures.megabytes:.1f}",
            *(f"{figures.time_ratio[size]:.2f}" for size in BATCHES),
            f"{figures.processor_ratio[BATCHES[-1]]:.2f}",
            *(f"{100 * share:.2f}" for share in figures.evidence.accuracy.values()),
            f"{100 * min(figures.evidence.first_evidence_same.values(), default=1.0):.1f}",
            f"{100 * min(figures.evidence.evidence_kept.values(), default=1.0):.1f}",
        ]
