"""Whether the boxes that "why not X?" names decide close calls. One command:

    python -m benchmarks.accuracy.close_calls NAME=BUNDLE=DATA [NAME=BUNDLE=DATA ...]

A close call is a test picture whose second most probable leaf is within 1 nat of the first. For each, X is that leaf:
the benchmark asks for the contrast, fills the boxes of the pieces that were found and speak for the predicted node, and
counts how often the answer's node at the level where the paths part is then another (*flipped*), and how often X is
more probable than the first leaf (*X ahead*). Beside it, two controls of equal area: the same region moved by random
offsets that wrap at the edges (*at random*; it may cover the named boxes again), and the same, but drawn until it
touches no named box (*elsewhere*; of 200 draws the one that overlaps least, if none touches nothing).

Boxes are filled in two ways. *At once*: all that one contrast names. *In turn*: the first box, then the first that
the contrast of the changed picture names, and so on until the node is another; a prototype's second place, nearly as
similar as the first, is named then, too. The random regions follow the same rule: each stops once it has flipped the
node.
Results in benchmarks/results/close-calls.{json,md}.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.measuring import described, machine, training_of, write_results
from protoserve.audit.regions import combined, filled, region, shifted
from protoserve.bundle.folder import read_bundle
from protoserve.bundle.truth_card import Fill
from protoserve.data.dataset import read_split
from protoserve.images.fitting import fit
from protoserve.images.geometry import Geometry
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence import predictions
from protoserve.inference.options import PredictOptions
from protoserve.schema import Box

NATS: Final = 1.0
COUNTS: Final = (1, 3, 5, 10)
FILLS: Final[tuple[Fill, ...]] = ("mean", "blur")
DRAWS: Final = 4
BATCH: Final = 16
# Draws for a region that touches no named box.
TRIES: Final = 200
COLUMNS: Final = ("flipped", "flipped_at_random", "flipped_elsewhere", "ahead", "ahead_at_random", "ahead_elsewhere")


@dataclass(frozen=True)
class CloseCall:
    """A `picture` uint8 [height, width, 3] at model size, its `outputs`, and its two most probable leaves."""

    picture: NDArray[np.uint8]
    outputs: Outputs
    first: int
    second: int


def close_calls(classifier: Classifier, data: Path, split: str, most: int, seed: int) -> tuple[int, list[CloseCall]]:
    """Look at the pictures of a split in random order; return how many it took, and the first `most` close calls."""
    leaves = np.array(classifier.taxonomy.leaves)
    pictures = read_split(data, split, classifier.taxonomy, left_out=classifier.bundle.left_out)
    found: list[CloseCall] = []
    numbers = np.random.default_rng(seed).permutation(len(pictures)).tolist()
    for start in track(range(0, len(numbers), BATCH), "close calls"):
        batch = numbers[start : start + BATCH]
        arrays = np.stack([fit(pictures.picture(number), classifier.bundle.input).array for number in batch])
        outputs = classifier.engine.run(arrays)
        for index in range(len(batch)):
            chances = outputs.log_probability[index, leaves]
            first, second = np.argsort(-chances, kind="stable")[:2]
            if chances[first] - chances[second] <= NATS:
                call = CloseCall(arrays[index], outputs.rows(index, index + 1), int(leaves[first]), int(leaves[second]))
                found.append(call)
        if len(found) >= most:
            return start + len(batch), found[:most]
    return len(numbers), found


def named_boxes(classifier: Classifier, call: CloseCall, outputs: Outputs) -> list[Box]:
    """The boxes of the pieces that a contrast with the second leaf finds in these outputs and that speak for the
    predicted node, the strongest first, in pixels at model size."""
    height, width = call.picture.shape[:2]
    geometry = Geometry(width, height, width, height, 1.0, 1.0, 0.0, 0.0)
    options = PredictOptions(top_k=classifier.table.top_k, contrast=classifier.table.names[call.second])
    [prediction] = predictions(outputs, classifier.table, [geometry], options.resolved(classifier.table))
    assert prediction.contrast is not None
    return [piece.box for piece in prediction.contrast.evidence if piece.found and piece.difference > 0]


def elsewhere(named: NDArray[np.bool_], generator: np.random.Generator) -> NDArray[np.bool_]:
    """The region [1, height, width], moved to where it touches itself the least, in up to TRIES random draws."""
    least, found = named.size + 1, named
    for _ in range(TRIES):
        moved = shifted(named, generator)
        if (overlap := int((moved & named).sum())) < least:
            least, found = overlap, moved
        if not overlap:
            break
    return found


def regions(classifier: Classifier, call: CloseCall, generator: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """For each of COUNTS: [1 + 2 · draws, height, width], the boxes that the contrast names, the same moved at random,
    and the same moved elsewhere."""
    boxes = named_boxes(classifier, call, call.outputs)
    for count in COUNTS:
        named = region(boxes[:count], (call.picture.shape[0], call.picture.shape[1]))[None]
        moved = [shifted(named, generator) for _ in range(DRAWS)]
        yield np.concatenate([named, *moved, *(elsewhere(named, generator) for _ in range(DRAWS))])


def one_by_one(
    classifier: Classifier, call: CloseCall, fill: Fill, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fill the box that speaks most for the predicted node, ask again, and so on, until the node is another.

    Returns float64 [COUNTS, 2], whether up to that many boxes changed the node, and the share of the draws in which the
    same boxes, moved at random, did; and float64 [COUNTS], the share of the picture that was filled.
    """
    height, width = call.picture.shape[:2]
    paths = classifier.taxonomy.path_at_level
    level = int(np.flatnonzero(paths[call.first] != paths[call.second])[0])
    kept = call.outputs.path[0, : level + 1]
    filling = filled(call.picture, call.picture, fill)
    mask = np.zeros((1 + DRAWS, height, width), dtype=bool)
    changed = np.zeros(1 + DRAWS, dtype=bool)
    outputs, rows, area = call.outputs, [], []
    for count in range(1, COUNTS[-1] + 1):
        if not changed[0]:
            named = region(named_boxes(classifier, call, outputs)[:1], (height, width))[None]
            moved = np.concatenate([named, *(shifted(named, generator) for _ in range(DRAWS))])
        mask |= moved & ~changed[:, None, None]
        found = classifier.engine.run(combined(filling, call.picture, mask))
        changed |= (found.path[:, : level + 1] != kept).any(axis=1)
        outputs = found.rows(0, 1)
        if count in COUNTS:
            rows.append([float(changed[0]), float(changed[1:].mean())])
            area.append(float(mask[0].mean()))
    return np.array(rows), np.array(area)


def measure(classifier: Classifier, calls: list[CloseCall], seed: int) -> list[dict[str, Any]]:
    """Count the flips per number of boxes and fill."""
    generator = np.random.default_rng(seed)
    flips: dict[tuple[int, Fill], list[list[float]]] = {}
    area: dict[int, list[float]] = {count: [] for count in COUNTS}
    paths = classifier.taxonomy.path_at_level
    for call in track(calls, "deletions"):
        level = int(np.flatnonzero(paths[call.first] != paths[call.second])[0])
        for count, masks in zip(COUNTS, regions(classifier, call, generator), strict=True):
            area[count].append(float(masks[0].mean()))
            for fill in FILLS:
                filling = filled(call.picture, call.picture, fill)
                outputs = classifier.engine.run(combined(filling, call.picture, masks))
                ahead = outputs.log_probability[:, call.second] > outputs.log_probability[:, call.first]
                flipped = (outputs.path[:, : level + 1] != call.outputs.path[:, : level + 1]).any(axis=1)
                counted = [
                    share
                    for found in (flipped, ahead)
                    for share in (found[0], found[1 : 1 + DRAWS].mean(), found[1 + DRAWS :].mean())
                ]
                flips.setdefault((count, fill), []).append([float(value) for value in counted])
    in_turn = {fill: [one_by_one(classifier, call, fill, generator) for call in calls] for fill in FILLS}
    turns = [
        {
            "boxes": count,
            "fill": fill,
            "asked": "in turn",
            **dict(zip(COLUMNS, np.mean([rows[index] for rows, _ in found], axis=0).tolist(), strict=False)),
            "area": float(np.mean([area[index] for _, area in found])),
        }
        for fill, found in in_turn.items()
        for index, count in enumerate(COUNTS)
    ]
    return [
        {
            "boxes": count,
            "fill": fill,
            "asked": "at once",
            **dict(zip(COLUMNS, np.mean(rows, axis=0).tolist(), strict=True)),
            "area": float(np.mean(area[count])),
        }
        for (count, fill), rows in flips.items()
    ] + turns


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Do the boxes of a contrast decide close calls?",
        "",
        "Made by `python -m benchmarks.accuracy.close_calls`; all figures in `close-calls.json`.",
        "",
        f"Test pictures whose second leaf is within {NATS:g} nat of the first. *Flipped*: the answer's node where the "
        "two paths part is another after the boxes of the pieces that speak for it are filled: those that one contrast "
        "names (*at once*), or the first one, then the first one of the changed picture's contrast, and so on (*in "
        "turn*). *X ahead*: the second leaf is more probable than the first. *At random*: after filling the same "
        "regions, moved at random, by the same rule; they may cover the named boxes again. *Elsewhere*: moved to where "
        "they touch none.",
        "",
        "| bundle | close calls | filled | boxes | fill | of picture | flipped | at random | elsewhere | X ahead "
        "| at random | elsewhere |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["bundles"].items():
        for row in found["rows"]:
            shares = " | ".join(f"{row[column]:.0%}" if column in row else "" for column in COLUMNS)
            calls = f"{found['close_calls']} of {found['pictures']}"
            told = f"{row['asked']} | {row['boxes']} | {row['fill']} | {row['area']:.0%}"
            lines.append(f"| {name} | {calls} | {told} | {shares} |")
    lines += ["", *(f"{name}: trained by {found['training']}." for name, found in results["bundles"].items())]
    return "\n".join([*lines, "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE=DATA")
    parser.add_argument("--most", type=int, default=200, help="close calls per bundle")
    parser.add_argument("--split", default="test", help="val to try something out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "seed": options.seed, "bundles": {}}
    for named in options.bundles:
        name, bundle, data = named.split("=")
        opened = read_bundle(bundle)
        classifier = load(opened, device="cpu")
        pictures, calls = close_calls(classifier, Path(data), options.split, options.most, options.seed)
        rows = measure(classifier, calls, options.seed)
        found["bundles"][name] = {
            "training": training_of(opened),
            "pictures": pictures,
            "close_calls": len(calls),
            "rows": rows,
        }
    write_results("close-calls", found, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
