"""Train one run with the code of two checkouts, and compare the weights bit for bit.

    python scripts/compare_runs.py ../before . --data rendered
    python scripts/compare_runs.py ../before . --config training/configs/grocery.yaml --data DIR --weights FILE
    python scripts/compare_runs.py --before-run DIR . --data rendered
    python scripts/compare_runs.py --before-run DIR --after-run DIR

Each checkout trains in a process of its own, with the same interpreter, data and options. The script then reads both
`model.pt` and exits with 0 if every tensor is equal, or with 1 after it has named the first tensors that differ and the
largest difference in each. Equal means the same names, types, shapes and bits: -0.0 differs from 0.0, and a NaN equals
a NaN of the same bits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 5


def tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a loaded file, with its dotted name, however deep it lies in mappings and sequences."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from tensors(value, f"{name}.{index}" if name else str(index))


def read_tensors(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's `model.pt`, on the CPU, by name.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    file = run / "model.pt"
    if not file.is_file():
        raise FileNotFoundError(f"{run} holds no model.pt; a finished run does")
    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    return dict(tensors(content))


def differing(before: Tensor, after: Tensor) -> Tensor:
    """Which values have other bits [values]; both tensors have one type and one shape."""
    size = before.element_size()
    first, second = (tensor.contiguous().reshape(-1).view(torch.uint8).reshape(-1, size) for tensor in (before, after))
    return (first != second).any(dim=1)


def difference(before: Tensor, after: Tensor) -> str | None:
    """How two tensors differ, in one line; None where they have one type, one shape and the same bits."""
    if before.dtype != after.dtype or before.shape != after.shape:
        return f"{before.dtype} {list(before.shape)} before, {after.dtype} {list(after.shape)} after"
    count = int(differing(before, after).sum())
    if count == 0:
        return None
    largest = float((before.double() - after.double()).abs().max())
    return f"{count:,} of {before.numel():,} values differ, by at most {largest:.3g}"


def compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that differs or stands on one side alone, in the order of `before`."""
    lines = []
    for name, tensor in before.items():
        if name not in after:
            lines.append(f"{name}: only before")
        elif (line := difference(tensor, after[name])) is not None:
            lines.append(f"{name}: {line}")
    return lines + [f"{name}: only after" for name in after if name not in before]


def train(checkout: Path, config: Path, data: Path, run: Path, options: list[str]) -> None:
    """Train `run` with the code of `checkout`.

    Raises:
        subprocess.CalledProcessError: the training failed; its output was printed.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "training", str(config), "--data", str(data), "--run", str(run), *options]
    print(f"{checkout}: {' '.join(command[1:])}", flush=True)
    subprocess.run(command, cwd=checkout, env=environment, check=True)


def render(data: Path) -> None:
    """Draw the rendered data set, with the code that this script belongs to."""
    code = "import sys; from protoserve.cli.root import main; main(['data', 'render', sys.argv[1]])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(data)], cwd=ROOT, env=environment, check=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkouts",
        nargs="*",
        type=Path,
        metavar="CHECKOUT",
        help="BEFORE AFTER, less those that a finished run stands for",
    )
    parser.add_argument("--before-run", type=Path, metavar="DIR", help="a finished run, instead of training BEFORE")
    parser.add_argument("--after-run", type=Path, metavar="DIR", help="a finished run, instead of training AFTER")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("training/configs/rendered.yaml"),
        help="the configuration, relative to each checkout (default: training/configs/rendered.yaml)",
    )
    parser.add_argument(
        "--data", default="rendered", help="the data set's folder, or 'rendered' to draw one (the default)"
    )
    parser.add_argument("--weights", type=Path, help="the backbone's start, for configurations that need one")
    parser.add_argument("--seed", type=int, default=0, help="the seed of both runs (default: 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the configuration, as in training"
    )
    parser.add_argument("--work", type=Path, help="where the runs are kept (default: a temporary folder)")
    options = parser.parse_args()
    wanted = (options.before_run is None) + (options.after_run is None)
    if len(options.checkouts) != wanted:
        parser.error(
            f"{len(options.checkouts)} checkouts given, {wanted} needed: one for each side without a finished run"
        )
    return options


def main() -> int:
    """Compare, and return the exit status."""
    options = parse()
    checkouts = [checkout.resolve() for checkout in options.checkouts]
    with tempfile.TemporaryDirectory(prefix="compare-runs-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        data = Path(options.data).resolve()
        if options.data == "rendered" and checkouts:
            data = work / "rendered"
            if not data.is_dir():
                render(data)
        arguments = ["--seed", str(options.seed)]
        for setting in options.set:
            arguments += ["--set", setting]
        if options.weights is not None:
            arguments += ["--weights", str(options.weights.resolve())]
        runs = []
        for name, finished in (("before", options.before_run), ("after", options.after_run)):
            run = finished or work / f"run-{name}"
            if finished is None:
                checkout = checkouts.pop(0)
                train(checkout, checkout / options.config, data, run, arguments)
            runs.append(run)
        before, after = (read_tensors(run) for run in runs)
    lines = compare(before, after)
    if not lines:
        print(f"equal: all {len(before)} tensors are the same, bit for bit")
        return 0
    print(f"different: {len(lines)} of {len(before | after)} tensors")
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")
    return 1


if __name__ == "__main__":
    sys.exit(main())
