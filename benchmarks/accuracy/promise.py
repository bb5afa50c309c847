"""Measure whether the promise of a precision holds, and how deep its answers go, beside plain rules. One command:

    python -m benchmarks.accuracy.promise --rendered BUNDLE DATA --of grocery BUNDLE DATA --work DIR

For each bundle and its data set, the graph's outputs for the selection and test pictures are computed once and kept in
`--work`. Then 100 times, as many of these pictures as the run's selection has are drawn to calibrate on, and the rest
is answered: by the promise, and by rules that need no calibration. For `--rendered`, more test pictures are drawn, so
that the count is less uncertain. Writes benchmarks/results/promise.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import described, machine, training_of, write_results
from export.validating import fitted_batches
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.data.dataset import Dataset
from protoserve.inference.engine import Engine
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.novelty import NoveltyTable
from protoserve.promise.calibration import Calibration
from protoserve.promise.threshold import Walks, answer_levels, promised_threshold
from protoserve.restriction import Restriction, restriction_of, unrestricted
from training.config import parse_config
from training.data.splits import read_splits
from training.rendered.classes import leaf_paths
from training.rendered.picture import draw_picture

PRECISIONS: Final = (0.9, 0.95, 0.99)
# The default of a run, `promise.confidence`.
CONFIDENCE: Final = 0.99
ROUNDS: Final = 100
# SpeciesNet (Gadot et al. 2024): the leaf from 0.8, else the deepest ancestor from 0.65.
LEAF, ROLL_UP = 0.8, 0.65
# Test pictures drawn of each leaf of the rendered set.
FIGURES: Final = 100
# The share of the leaves that a random allow-list holds.
LISTED: Final = 0.5

Rule = Callable[[Walks], NDArray[np.int64]]


def scored(bundle: Bundle, dataset: Dataset, engine: Engine, file: Path) -> Calibration:
    """The outputs for a data set, computed once and kept in `file`."""
    if not file.is_file():
        table = EvidenceTable.of(bundle)
        groups = len(NoveltyTable.of(bundle.taxonomy, bundle.kind, ()).groups)
        leaves, fits = [], []
        for _, pictures in fitted_batches(dataset, bundle.input, 16):
            outputs = engine.run(pictures)
            leaves.append(outputs.log_probability[:, list(bundle.taxonomy.leaves)])
            own = np.ones((len(pictures), groups), dtype=np.bool_)
            if (thresholds := table.thresholds) is not None:
                arrays = outputs.log_probability, outputs.logit, outputs.similarity
                own = thresholds.fits(thresholds.table.scores(thresholds.score, *arrays))
            fits.append(own)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, leaf=dataset.leaves, log_probability=np.concatenate(leaves), fits=np.concatenate(fits))
    with np.load(file, allow_pickle=False) as kept:
        return Calibration(kept["leaf"].astype(np.int32), kept["log_probability"], kept["fits"])


def read_outputs(folder: Path, data: Path, work: Path) -> tuple[Bundle, dict[str, Calibration]]:
    """A bundle and its outputs for the selection and test pictures of the run that it comes from."""
    bundle = read_bundle(folder)
    splits = read_splits(parse_config(dict(bundle.manifest.provenance.config), str(folder)), data)
    assert splits.test is not None
    engine, version = Engine(bundle, device="cpu"), bundle.version[7:19]
    parts = {"selection": splits.selection, "test": splits.test}
    return bundle, {
        name: scored(bundle, part, engine, work / f"{bundle.name}-{version}-{name}-{part.fingerprint()[-12:]}.npz")
        for name, part in parts.items()
    }


def with_more_test(data: Path, work: Path) -> Path:
    """A copy of a rendered data set by links, with `FIGURES` test pictures per leaf, of the same seed."""
    folder = work / "rendered"
    if not folder.is_dir():
        settings = json.loads((data / "parts.json").read_text())
        draft = work / "rendered-draft"
        for leaf in leaf_paths():
            for index in range(1, FIGURES + 1):
                file = draft / "test" / Path(*leaf) / f"{leaf[2].lower()}_{index:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture = draw_picture(leaf, seed=settings["seed"], split="test", index=index, size=settings["size"])
                Image.fromarray(picture.pixels).save(file)
        for split in ("train", "val"):
            (draft / split).symlink_to((data / split).resolve())
        draft.rename(folder)
    return folder


def joined(parts: list[Calibration]) -> Calibration:
    """Several data sets as one."""
    return Calibration(
        np.concatenate([part.leaf for part in parts]),
        np.concatenate([part.log_probability for part in parts]),
        np.concatenate([part.fits for part in parts]),
    )


def climb(threshold: float | None) -> Rule:
    """Answer the deepest known node from a threshold; None answers nothing."""
    return lambda walks: answer_levels(walks.probability, walks.known, np.inf if threshold is None else threshold)


def plain(precision: float) -> Rule:
    """Answer the leaf from a softmax of the stated precision, else nothing."""
    return lambda walks: np.where(leaf_of(walks)[0] >= precision, leaf_of(walks)[1], 0)


def speciesnet(walks: Walks) -> NDArray[np.int64]:
    """Answer by SpeciesNet's rule, which knows no unknown classes."""
    probability, depth = leaf_of(walks)
    rolled = (walks.probability >= ROLL_UP).sum(axis=1)
    return np.where(probability >= LEAF, depth, np.minimum(rolled, np.maximum(depth - 1, 0)))


def leaf_of(walks: Walks) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The probability and the level of each path's end."""
    depth = (walks.probability > 0).sum(axis=1)
    return np.take_along_axis(walks.probability, depth[:, None] - 1, axis=1)[:, 0], depth


def counts(walks: Walks, level: NDArray[np.int64], certain: int = 0) -> NDArray[np.int64]:
    """[levels, 2]: the answers at each level, and how many are right; without those that a list alone decides."""
    right = level <= walks.right
    rows = [(level == own) & (own > certain) for own in range(1, walks.probability.shape[1] + 1)]
    return np.array([[row.sum(), (row & right).sum()] for row in rows])


def summary(found: list[NDArray[np.int64]], images: list[int], precision: float) -> dict[str, Any]:
    """Coverage by level and in all, precision, and in how many rounds the precision was reached."""
    total = np.array(found)  # [rounds, levels, 2]
    answered, right = total[:, :, 0].sum(axis=1), total[:, :, 1].sum(axis=1)
    return {
        "coverage": (total[:, :, 0] / np.array(images)[:, None]).mean(axis=0).tolist(),
        "coverage_all": float((answered / np.array(images)).mean()),
        "precision": float(right.sum() / answered.sum()) if answered.any() else None,
        "precision_by_level": [
            float(level[:, 1].sum() / level[:, 0].sum()) if level[:, 0].any() else None
            for level in total.swapaxes(0, 1)
        ],
        "held": int((right >= precision * answered).sum()),
        "silent": int((answered == 0).sum()),
        "rounds": len(found),
    }


def resplit(
    pool: Calibration,
    images: int,
    precision: float,
    group_of: NDArray[np.int64],
    restrictions: Iterator[Restriction],
    whole: Restriction,
) -> dict[str, dict[str, Any]]:
    """The promise and its rivals over `ROUNDS` draws of `images` calibration pictures, each under the next restriction.

    The rival `unrestricted threshold` has the threshold of the same calibration pictures without the restriction.
    """
    generator = np.random.default_rng(0)
    found: dict[str, list[NDArray[np.int64]]] = {}
    numbers = []
    for _ in range(ROUNDS):
        restriction = next(restrictions)
        order = generator.permutation(len(pool))
        calibration, rest = pool.rows(order[:images]), pool.rows(order[images:])
        own = calibration.threshold(restriction, group_of, precision, CONFIDENCE)
        rules: dict[str, Rule] = {"promise": climb(own.value)}
        if restriction is not whole:
            rules["unrestricted threshold"] = climb(calibration.threshold(whole, group_of, precision, CONFIDENCE).value)
        rules |= {"climb at the precision": climb(precision), "leaf at the precision": plain(precision)}
        rules["SpeciesNet's rule"] = speciesnet
        walks = rest.walks(restriction, group_of)
        numbers.append(len(walks))
        for name, rule in rules.items():
            found.setdefault(name, []).append(counts(walks, rule(walks), restriction.certain_levels))
    return {name: summary(parts, numbers, precision) for name, parts in found.items()}


def random_lists(whole: Restriction) -> Iterator[Restriction]:
    """Allow-lists of half of the leaves, drawn at random."""
    generator = np.random.default_rng(1)
    names = [whole.taxonomy.names[leaf] for leaf in whole.taxonomy.leaves]
    while True:
        chosen = generator.permutation(len(names))[: max(2, round(LISTED * len(names)))]
        yield restriction_of(whole.taxonomy, allow=[names[leaf] for leaf in chosen])


def reuse(parts: dict[str, Calibration], precision: float, group_of: NDArray[np.int64], whole: Restriction) -> Any:
    """What it costs that the selection images also chose epochs, temperatures and novelty thresholds.

    `selection`: calibrated on them, scored on test; the same with 100 bootstrap draws of them. `test`: calibrated on
    as many test pictures (at most half), scored on the rest, 100 draws.
    """
    walks = {name: part.walks(whole, group_of) for name, part in parts.items()}
    generator = np.random.default_rng(2)
    images = min(len(walks["selection"]), len(walks["test"]) // 2)
    drawn: dict[str, list[NDArray[np.int64]]] = {"selection": [], "bootstrap": [], "test": []}
    own = promised_threshold(walks["selection"], precision, CONFIDENCE).value
    drawn["selection"].append(counts(walks["test"], climb(own)(walks["test"])))
    for _ in range(ROUNDS):
        again = walks["selection"].rows(generator.integers(0, len(walks["selection"]), len(walks["selection"])))
        value = promised_threshold(again, precision, CONFIDENCE).value
        drawn["bootstrap"].append(counts(walks["test"], climb(value)(walks["test"])))
        order = generator.permutation(len(walks["test"]))
        value = promised_threshold(walks["test"].rows(order[:images]), precision, CONFIDENCE).value
        rest = walks["test"].rows(order[images:])
        drawn["test"].append(counts(rest, climb(value)(rest)))
    sizes = {"selection": len(walks["test"]), "bootstrap": len(walks["test"]), "test": len(walks["test"]) - images}
    return {"threshold": own} | {
        name: summary(found, [sizes[name]] * len(found), precision) for name, found in drawn.items()
    }


def measure(folder: Path, data: Path, work: Path) -> dict[str, Any]:
    """All figures of one bundle."""
    bundle, parts = read_outputs(folder, data, work)
    group_of = NoveltyTable.of(bundle.taxonomy, bundle.kind, ()).group_of(bundle.kind)
    whole, pool = unrestricted(bundle.taxonomy), joined(list(parts.values()))

    def always() -> Iterator[Restriction]:
        while True:
            yield whole

    images = len(parts["selection"])
    result: dict[str, Any] = {"training": training_of(bundle), "selection": images, "test": len(parts["test"])}
    result["precisions"] = {}
    for precision in PRECISIONS:
        result["precisions"][f"{precision:g}"] = {
            "resplits": resplit(pool, images, precision, group_of, always(), whole),
            "allow": resplit(pool, images, precision, group_of, random_lists(whole), whole),
            "reuse": reuse(parts, precision, group_of, whole),
        }
    return result


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.1f}"


def tables(name: str, found: dict[str, Any]) -> list[str]:
    """One bundle's figures as lines of Markdown."""
    some = next(iter(found["precisions"].values()))["resplits"]["promise"]
    levels = " | ".join(f"level {number + 1}" for number in range(len(some["coverage"])))
    lines = [f"## {name}: {found['selection']} calibration pictures, {found['test']} of test", ""]
    lines += [f"Trained by {found['training']}.", ""]
    for kind, title in (("resplits", "All classes"), ("allow", "Under random allow-lists that hold the truth")):
        lines += [
            f"{title}. Cells: share of the pictures answered at this level / how many of these are right, in %.",
            "",
        ]
        lines += [
            f"| promised | rule | {levels} | answered | right | held |",
            "|---" * (len(some["coverage"]) + 5) + "|",
        ]
        for stated, parts in found["precisions"].items():
            for rule, one in parts[kind].items():
                cells = " | ".join(
                    f"{percent(share)} / {percent(right)}"
                    for share, right in zip(one["coverage"], one["precision_by_level"], strict=True)
                )
                silent = f" ({one['silent']} silent)" if one["silent"] else ""
                total = f"{percent(one['coverage_all'])} | {percent(one['precision'])}"
                lines.append(f"| {stated} | {rule} | {cells} | {total} | {one['held']}{silent} |")
        lines.append("")
    lines += [
        "What the reuse of the selection images costs: answered / right on test, in %, by where the threshold is from.",
        "",
        "| promised | the selection images | bootstrap draws of them: held | as many test pictures: held |",
        "|---|---|---|---|",
    ]
    for stated, parts in found["precisions"].items():
        one = parts["reuse"]
        shares = [f"{percent(one['selection']['coverage_all'])} / {percent(one['selection']['precision'])}"]
        shares += [
            f"{percent(one[part]['coverage_all'])} / {percent(one[part]['precision'])}: {one[part]['held']}"
            for part in ("bootstrap", "test")
        ]
        lines.append(f"| {stated} | {' | '.join(shares)} |")
    return [*lines, ""]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rendered", nargs=2, metavar=("BUNDLE", "DATA"), help="the demo's bundle and data set")
    parser.add_argument("--of", nargs=3, action="append", default=[], metavar=("NAME", "BUNDLE", "DATA"))
    parser.add_argument("--work", type=Path, required=True, help="the folder that keeps the networks' outputs")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "confidence": CONFIDENCE, "rounds": ROUNDS, "bundles": {}}
    lines = [
        "# The promise of a precision",
        "",
        "Made by `python -m benchmarks.accuracy.promise --rendered BUNDLE DATA --of NAME BUNDLE DATA --work DIR`; "
        f"all figures in `promise.json`. {ROUNDS} re-splits of the selection and test pictures; *held* counts those in "
        "which the share of right answers, counted on the pictures not calibrated on, is the promised one or more. A "
        "*silent* re-split has too few pictures to promise anything, so gives no answer and holds.",
        "",
    ]
    if options.rendered:
        bundle, data = options.rendered
        options.of.insert(0, ("rendered", bundle, with_more_test(Path(data), options.work)))
    for name, bundle, data in options.of:
        results["bundles"][name] = measure(Path(bundle), Path(data), options.work)
        lines += tables(name, results["bundles"][name])
    text = "\n".join([*lines, described(results["machine"])]) + "\n"
    write_results("promise", results, text)
    print(text)


if __name__ == "__main__":
    main()
