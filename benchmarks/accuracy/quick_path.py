"""Compare the answers of the quick path with those of the full graph alone, on photographs. One command:

    python -m benchmarks.accuracy.quick_path BUNDLE [BUNDLE ...] --data DIR

Takes bundles with the target `onnx-routed`, and answers every picture of the test split both ways, with the options of
a request that names none. Counts what differs, and times both graphs in turns, one picture and one thread each.
Results in benchmarks/results/quick_path.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from benchmarks.measuring import RESULTS, described_rows, machine
from protoserve.bundle.folder import read_bundle
from protoserve.data.dataset import read_split
from protoserve.files import write_text
from protoserve.images.fitting import fit
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Engine
from protoserve.inference.evidence import predictions
from protoserve.inference.options import PredictOptions
from protoserve.schema import Evidence, Prediction

# Contributions this close are a tie, which rounding decides.
TIE: Final = 1e-3
AHEAD: Final = 32
"""How many pictures are decoded ahead."""
SAME: Final = (
    "path",
    "evidence",
    "evidence_up_to_ties",
    "against_up_to_ties",
    "known",
    "answer",
    "alternatives",
    "sufficient",
)


def differences(found: Prediction, expected: Prediction) -> dict[str, bool]:
    """What is the same in two answers to one picture, by name (`SAME`)."""
    levels = list(zip(found.levels, expected.levels, strict=False))
    return {
        "path": found.path == expected.path,
        "evidence": all(_cells(one.evidence) == _cells(other.evidence) for one, other in levels),
        "evidence_up_to_ties": all(same_pieces(one.evidence, other.evidence) for one, other in levels),
        "against_up_to_ties": all(same_pieces(one.against, other.against) for one, other in levels),
        "known": found.known_through_level == expected.known_through_level,
        "answer": found.answer == expected.answer,
        "alternatives": all(
            [node.node for node in one.alternatives] == [node.node for node in other.alternatives]
            for one, other in levels
        ),
        "sufficient": all(one.sufficient == other.sufficient for one, other in levels),
    }


def same_pieces(found: list[Evidence], expected: list[Evidence]) -> bool:
    """Whether two lists have the same prototypes at the same boxes in the same order, up to near ties."""
    if len(found) != len(expected):
        return False
    return all(
        abs(one.contribution - other.contribution) <= TIE
        and ((one.prototype, one.box) == (other.prototype, other.box) or _is_tied(other, expected))
        for one, other in zip(found, expected, strict=True)
    )


def _is_tied(piece: Evidence, pieces: list[Evidence]) -> bool:
    near = sum(abs(piece.contribution - other.contribution) <= TIE for other in pieces)
    # The last piece may be tied with one that is not shown.
    return near > 1 or piece is pieces[-1]


def _cells(pieces: list[Evidence]) -> list[tuple[int, tuple[int, int, int, int]]]:
    return [(piece.prototype, piece.box) for piece in pieces]


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """The counts and times of one bundle on the test split."""
    bundle = read_bundle(folder)
    engine = Engine(bundle, "cpu", 1)
    quick = Classifier(bundle, engine, "auto", 1)
    if quick.quick is None:
        raise SystemExit(f"{folder}: has no routed graph to use; export it with --to onnx,onnx-routed")
    options, pictures = PredictOptions().resolved(quick.table), read_split(data, "test", bundle.taxonomy)
    same, routes = Counter[str](), Counter[str]()
    worst: dict[str, float] = {"probability": 0.0, "contribution": 0.0}
    times: list[tuple[float, float]] = []
    different: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as pool:
        for start_at in track(range(0, len(pictures), AHEAD), "photographs"):
            numbers = range(start_at, min(start_at + AHEAD, len(pictures)))
            for fitted in pool.map(lambda number: fit(pictures.picture(number), bundle.input), numbers):
                image = fitted.array[None]
                # Whichever graph is first finds the caches filled with a decoder's data.
                seconds = [0.0, 0.0]
                for way in (0, 1) if len(times) % 2 else (1, 0):
                    start = time.perf_counter()
                    if way:
                        whole = engine.run(image)
                    else:
                        outputs = quick.outputs(image, [options])
                    seconds[way] = time.perf_counter() - start
                times.append((seconds[0], seconds[1]))
                assert outputs.route is not None
                routes[str(outputs.route[0])] += 1
                [found] = predictions(outputs, quick.table, [fitted.geometry], options)
                [expected] = predictions(whole, quick.table, [fitted.geometry], options)
                told = differences(found, expected)
                same.update(name for name, equal in told.items() if equal)
                if not all(told.values()):
                    number = len(times) - 1
                    different.append(
                        {"image": pictures.images[number], "differs": [name for name in told if not told[name]]}
                    )
                for one, other in zip(found.levels, expected.levels, strict=False):
                    worst["probability"] = max(worst["probability"], abs(one.probability - other.probability))
                    pairs = zip(one.evidence, other.evidence, strict=False)
                    apart = [abs(left.contribution - right.contribution) for left, right in pairs]
                    worst["contribution"] = max([worst["contribution"], *apart])
    measured = np.array(times)
    return {
        "bundle": bundle.name,
        "prototypes": len(bundle.prototypes),
        "leaves": len(bundle.taxonomy.leaves),
        "photographs": len(pictures),
        "routes": dict(routes),
        "same": {name: same[name] for name in SAME},
        "worst": worst,
        "quick_milliseconds": float(np.median(measured[:, 0]) * 1e3),
        "full_milliseconds": float(np.median(measured[:, 1]) * 1e3),
        "ratio": float(np.median(measured[:, 0] / measured[:, 1])),
        "different": different,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# The quick path beside the full graph",
        "",
        "Made by `python -m benchmarks.accuracy.quick_path BUNDLE … --data DIR`; all figures in `quick_path.json`.",
        "",
        "Every test photograph, answered with default options by the routed graph with the full one behind it, and by "
        "the full graph alone. *Routed*: answered by the routed graph alone. *Alternatives*, *uncertain*: its "
        "certificate did not hold for the alternatives, or for the path, so the full graph answered. The other columns "
        f"count answers that are the same; *up to ties* accepts another order where contributions differ by at most "
        f"{TIE:g}. *Ratio*: the median time with the quick path over that of the full graph, one picture and one "
        "thread each, in turns.",
        "",
        "| bundle | photographs | routed | alternatives | uncertain | "
        + " | ".join(name.replace("_", " ") for name in SAME)
        + " | ratio |",
        "|---" * (6 + len(SAME)) + "|",
    ]
    for row in results["bundles"]:
        routes = [str(row["routes"].get(name, 0)) for name in ("routed", "alternatives", "uncertain")]
        counts = [str(row["same"][name]) for name in SAME]
        cells = [row["bundle"], str(row["photographs"]), *routes, *counts, f"{row['ratio']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    worst = {kind: max(row["worst"][kind] for row in results["bundles"]) for kind in ("probability", "contribution")}
    lines += [
        "",
        "`different` in the JSON file names the photographs that differ in anything, ties of cells and of alternatives "
        "included.",
        "",
        f"Largest differences: probability {worst['probability']:.1e}, contribution {worst['contribution']:.1e}.",
    ]
    return "\n".join([*lines, *described_rows({row["bundle"]: row["machine"] for row in results["bundles"]})]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles with the target onnx-routed")
    parser.add_argument("--data", type=Path, required=True, help="their data set, with a folder test")
    options = parser.parse_args()
    results = {"bundles": [{**measure(folder, options.data), "machine": machine()} for folder in options.bundles]}
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "quick_path.json", json.dumps(results, indent=1) + "\n")
    write_text(RESULTS / "quick_path.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
