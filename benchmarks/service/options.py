"""What the options of a request add to an answer: `contrast`, `without`, both, `allow` and `deny`. One command:

    python -m benchmarks.service.options NAME=BUNDLE=PICTURES [NAME=BUNDLE=PICTURES ...]

Measures the step after the engine, from arrays to JSON, because options act there only. Each round answers the same
picture plainly and with each option, in turn, so that all see the same load.
Times are the thread's own, so that other work of the machine counts little; set OMP_NUM_THREADS=1, so that there is one
thread. Results in benchmarks/results/options.{json,md}.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.measuring import described, machine, write_results
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.evidence import predictions
from protoserve.inference.options import PredictOptions

PLAIN: Final = "plain"


def choices(classifier: Classifier, path: list[str]) -> dict[str, PredictOptions]:
    """The options to measure for a picture of this predicted path; the other node parts at the last level if it can."""
    names = classifier.table.names
    leaf = "/".join(path)
    siblings = [name for name in names if name != leaf and name.rpartition("/")[0] == leaf.rpartition("/")[0]]
    other = siblings[0] if siblings else next(name for name in names if name not in leaf)
    off = (0, len(classifier.table.prototypes) // 2)
    return {
        PLAIN: PredictOptions(),
        "contrast": PredictOptions(contrast=other),
        "without": PredictOptions(without=off),
        "both": PredictOptions(contrast=other, without=off),
        # A list that holds the answer, so that the path stays, and one that excludes it.
        "allow": PredictOptions(allow=(path[0],)),
        "deny": PredictOptions(deny=(leaf,)),
    }


def measure(classifier: Classifier, files: list[Path], rounds: int) -> dict[str, Any]:
    """Milliseconds per answer, and by how much each option exceeds the plain answer of the same round."""
    times: dict[str, list[float]] = {}
    for file in files:
        fitted = classifier.fit(file)
        outputs = classifier.engine.run(fitted.array[None])
        [plain] = predictions(outputs, classifier.table, [fitted.geometry])
        asked = choices(classifier, plain.path)
        for _ in range(rounds):
            for name, options in asked.items():
                begun = time.thread_time()
                resolved = options.resolved(classifier.table)
                [prediction] = predictions(outputs, classifier.table, [fitted.geometry], resolved)
                prediction.model_dump_json()
                times.setdefault(name, []).append((time.thread_time() - begun) * 1000)
    plain_times = np.array(times.pop(PLAIN))
    added = {name: np.array(values) - plain_times for name, values in times.items()}
    return {
        "pictures": len(files),
        "rounds": rounds,
        "plain_ms": float(np.median(plain_times)),
        "added_ms": {name: float(np.median(values)) for name, values in added.items()},
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# What options add to an answer",
        "",
        "Made by `python -m benchmarks.service.options`; all figures in `options.json`.",
        "",
        "Milliseconds of one thread's own time, from the engine's arrays to JSON, one picture; medians. *Added*: "
        "beside the plain answer of the same round.",
        "",
        "| bundle | plain | added by contrast | by without | by both | by allow | by deny, with another path |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results["bundles"].items():
        added = " | ".join(
            f"{found['added_ms'][option]:.2f}" for option in ("contrast", "without", "both", "allow", "deny")
        )
        lines.append(f"| {name} | {found['plain_ms']:.2f} | {added} |")
    return "\n".join([*lines, "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE=PICTURES")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "bundles": {}}
    for named in options.bundles:
        name, bundle, pictures = named.split("=")
        files = sorted(file for file in Path(pictures).rglob("*") if file.suffix in (".jpg", ".png", ".webp"))
        files = files[:: max(1, len(files) // options.pictures)][: options.pictures]
        found["bundles"][name] = measure(load(bundle, device="cpu"), files, options.rounds)
    write_results("options", found, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
