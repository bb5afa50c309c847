"""Measure how well classes of Grocery Store are added from a few photographs without training. One command:

    python -m benchmarks.accuracy.extending --data DIR --weights FILE --runs RUNS

Trains without the leaves of `benchmarks.accuracy.novelty`, adds them by `protoserve extend` with 5 and with 20
photographs of train each, and scores the test split. Beside it: the nearest class mean of pooled features (the mean of
the same photographs for new leaves, of all for old ones), and a full training with all photographs of every leaf.
Writes benchmarks/results/extending.{json,md}. `--choose` compares numbers of prototypes instead, on val and on
photographs of train that `extend` is not given; it does not read test.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional

from benchmarks.accuracy.novelty import CONFIG, LEAVES
from benchmarks.measuring import described, machine, trained_run, write_results
from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.networks.head import PrototypeHead
from protoserve.networks.network import LinearNetwork
from protoserve.run.similarities import read_similarities
from protoserve.taxonomy import Taxonomy
from training.extending.carrying import carried_head, new_prototypes
from training.extending.changes import Changes, changed_tree
from training.extending.extending import TOLERANCE, Extension, extend, groups_to_fit
from training.extending.finished import read_finished
from training.extending.fitting import fitted_head
from training.extending.measuring import Stopwatch, frozen_feed, log_probability, similarities
from training.extending.pictures import learned_pictures, new_pictures
from training.features.shared_cache import GIGABYTE, SharedCache

COUNTS = (5, 20)
PLACE = torch.device("cpu")
# Numbers of prototypes of the nodes above a new leaf to compare, relative to the leaf's own.
ABOVES = (0.0, 1 / 3, 1.0)
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Recalls:
    """Recall of each new leaf, and accuracy on the images of all other leaves, in [0, 1]."""

    new: dict[str, float]
    others: float

    @property
    def mean(self) -> float:
        """The mean recall of the new leaves."""
        return statistics.mean(self.new.values())


def recalls(predicted: NDArray[np.int64], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> Recalls:
    """Score predicted leaves against the true ones, both int64 [images]."""
    names = [taxonomy.names[leaf] for leaf in taxonomy.leaves]
    new = {leaf: float((predicted[leaves == names.index(leaf)] == names.index(leaf)).mean()) for leaf in LEAVES}
    others = ~np.isin(leaves, [names.index(leaf) for leaf in LEAVES])
    return Recalls(new, float((predicted[others] == leaves[others]).mean()))


@dataclass(frozen=True)
class Pictures:
    """The train and test photographs of all leaves, and the pooled features of the frozen backbone at unit length,
    float32 [images, width]."""

    train: Dataset
    test: Dataset
    pooled_train: NDArray[np.float32]
    pooled_test: NDArray[np.float32]


def read_pictures(options: argparse.Namespace, run: Path) -> Pictures:
    """Read the photographs, and compute pooled features by the backbone of a run; all runs here have the same one."""
    whole, finished = read_taxonomy(options.data), read_finished(run)
    train, test = (read_split(options.data, split, whole) for split in ("train", "test"))
    with tempfile.TemporaryDirectory() as scratch:
        plain = LinearNetwork(finished.network.backbone, whole).eval()
        feed = frozen_feed(
            *(train, test, plain, finished.config, Path(scratch)),
            device=PLACE,
            console=QUIET,
            cache=shared_cache(options),
        )
        train_rows = feed.cached("fit").batch(np.arange(len(train)))
        test_rows = feed.cached("selection").batch(np.arange(len(test)))
    return Pictures(train, test, *(functional.normalize(rows).numpy() for rows in (train_rows, test_rows)))


def shared_cache(options: argparse.Namespace) -> SharedCache:
    """The folder in which runs share features."""
    return SharedCache(options.runs / "cache", 50 * GIGABYTE)


def scored(options: argparse.Namespace, run: Path, test: Dataset) -> NDArray[np.int64]:
    """The leaf that a run's network predicts for each test image, int64 [images], as a place in the leaves of the whole
    tree."""
    finished = read_finished(run)
    network, whole = finished.network.eval(), test.taxonomy
    with tempfile.TemporaryDirectory() as scratch:
        feed = frozen_feed(
            *(test, test, network, finished.config, Path(scratch)),
            device=PLACE,
            console=QUIET,
            cache=shared_cache(options),
        )
        answers = log_probability(
            network.head, similarities(network, network.head, feed.cached("selection"), 64, PLACE)
        )
    place = {node: leaf for leaf, node in enumerate(whole.leaves)}
    tree = network.head.taxonomy
    leaves = [place[whole.index[tree.names[leaf]]] for leaf in tree.leaves]
    return np.asarray(np.array(leaves)[answers[:, list(tree.leaves)].argmax(axis=1)])


def photographs(data: Path, count: int, seed: int, folder: Path) -> dict[str, Path]:
    """Copy `count` random training photographs of each new leaf; returns leaf → folder."""
    folders = {}
    for leaf in LEAVES:
        files = sorted((data / "train" / leaf).iterdir())
        chosen = np.random.default_rng((seed, count)).permutation(len(files))[:count]
        folders[leaf] = folder / leaf
        folders[leaf].mkdir(parents=True)
        for index in chosen.tolist():
            shutil.copyfile(files[index], folders[leaf] / files[index].name)
    return folders


def nearest_means(
    train: NDArray[np.float32], given: NDArray[np.bool_], leaves: NDArray[np.int64], test: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The leaf with the nearest mean feature, int64 [test images], of the `given` training images."""
    means = np.stack([train[given & (leaves == leaf)].mean(axis=0) for leaf in range(int(leaves.max()) + 1)])
    distance = (test**2).sum(axis=1)[:, None] - 2 * test @ means.T + (means**2).sum(axis=1)
    return np.asarray(distance.argmin(axis=1))


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with and without the leaves by one seed, extend, and score all of them on test."""
    base, full = trained(options, seed, LEAVES), trained(options, seed, ())
    pictures = read_pictures(options, base)
    train, leaves, whole = pictures.train, pictures.test.leaves, pictures.test.taxonomy
    before = recalls(scored(options, base, pictures.test), leaves, whole).others
    rows = {"full training": recalls(scored(options, full, pictures.test), leaves, whole)}
    costs: dict[str, Extension] = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as scratch:
            folders = photographs(options.data, count, seed, Path(scratch) / "photographs")
            given = {f"train/{leaf}/{file.name}" for leaf, folder in folders.items() for file in folder.iterdir()}
            output, learned = Path(scratch) / "extended", without_test(options.data, Path(scratch) / "learned")
            extension = extend(
                base,
                Changes(added=folders),
                learned,
                output,
                tolerance=100,
                cache=shared_cache(options),
                console=QUIET,
            )
            rows[f"extend, {count}"] = recalls(scored(options, output, pictures.test), leaves, whole)
        costs[f"extend, {count}"] = extension
        kept = np.array([image in given or leaf_of(image) not in LEAVES for image in train.images])
        means = nearest_means(pictures.pooled_train, kept, train.leaves, pictures.pooled_test)
        rows[f"nearest class mean, {count}"] = recalls(means, leaves, whole)
    return {
        "seed": seed,
        "before": before,
        "rows": {name: {"new": row.new, "mean": row.mean, "others": row.others} for name, row in rows.items()},
        "extensions": {name: extension.document() for name, extension in costs.items()},
    }


def trained(options: argparse.Namespace, seed: int, left_out: Sequence[str]) -> Path:
    """A run by this seed, with or without the new leaves."""
    return trained_run(
        options.runs / f"{'without' if left_out else 'full'}-{seed}",
        CONFIG,
        data=options.data,
        weights=options.weights,
        seed=seed,
        settings=options.settings,
        left_out=left_out,
    )


def without_test(data: Path, folder: Path) -> Path:
    """A data set with the train and val photographs alone: `extend` need not score test, which is scored here."""
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to((data / split).resolve(), target_is_directory=True)
    return folder


def choose(options: argparse.Namespace, seed: int) -> None:
    """Print, for numbers of new prototypes, the recall of new leaves on val and on photographs of train that were not
    given, and what the old leaves lose on val, by the setting of the refit that `extend` would choose."""
    base = trained(options, seed, LEAVES)
    kept = read_similarities(base, len(read_finished(base).sources))
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as scratch:
            folders = photographs(options.data, count, seed, Path(scratch) / "photographs")
            given = {f"train/{leaf}/{file.name}" for leaf, folder in folders.items() for file in folder.iterdir()}
            changes = Changes(added=folders)
            for above in ABOVES:
                finished = read_finished(base)
                network, config = finished.network, finished.config
                tree = changed_tree(finished.taxonomy, changes)
                old = learned_pictures(base, options.data, finished.taxonomy, kept, config, QUIET)
                new = new_pictures(folders, tree, options.data, config, has_val=True, skip_broken=False, console=QUIET)
                needed = new_prototypes(network.head, tree, 0, above=above)
                carried = carried_head(network.head, tree, needed)
                common: dict[str, Any] = {"device": PLACE, "console": QUIET, "cache": shared_cache(options)}
                result = fitted_head(
                    *(network, carried, tree, old, new, kept, config, groups_to_fit(carried, tree, changes), TOLERANCE),
                    directory=Path(scratch) / "cache",
                    watch=Stopwatch(),
                    **common,
                )
                train, val = (read_split(options.data, split, tree.taxonomy) for split in ("train", "val"))
                rest = [image not in given and leaf_of(image) in LEAVES for image in train.images]
                unseen = [leaf_of(image) in LEAVES for image in val.images]
                parts = train.subset(np.flatnonzero(rest)), val.subset(np.flatnonzero(unseen))
                feed = frozen_feed(*parts, network, config, Path(scratch) / "rest", **common)
                shares = [
                    _recall(carried.head, similarities(network, carried.head, features, 64, PLACE), part.leaves)
                    for features, part in zip((feed.cached("fit"), feed.cached("selection")), parts, strict=True)
                ]
                lost = {level: round(cost.points, 2) for level, cost in result.old_images.cost(carried.head).items()}
                print(
                    f"{count:>3} photographs, {above:.2f} × above: new on val {100 * shares[1]:.1f}, "
                    f"on train {100 * shares[0]:.1f}; old lose {lost}; {result.setting}",
                    flush=True,
                )


def _recall(head: PrototypeHead, similarity: NDArray[np.float32], leaves: NDArray[np.int64]) -> float:
    """The mean recall of the leaves that occur."""
    found = log_probability(head, similarity)[:, list(head.taxonomy.leaves)].argmax(axis=1)
    return float(np.mean([np.mean(found[leaves == leaf] == leaf) for leaf in np.unique(leaves)]))


def leaf_of(image: str) -> str:
    """The leaf of an image `split/LEAF/FILE`."""
    return image.split("/", 1)[1].rpartition("/")[0]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    found = results["seeds"]
    lines = [
        "# Classes added without training",
        "",
        "Made by `python -m benchmarks.accuracy.extending --data DIR --weights FILE --runs RUNS"
        + "".join(f" --set {setting}" for setting in results["settings"])
        + "`; all figures in `extending.json`. Grocery Store, test. Three leaves are left out of training and added "
        "from 5 or 20 photographs of train each. *Of full training*: recall of the new leaves, relative to a network "
        "that was trained with all their photographs. *Other leaves*: their accuracy, and the change "
        "against the network before.",
        "",
        f"| seeds: {len(found)} | recall of new leaves, % | of full training, % | other leaves, % | change, points |",
        "|---|---|---|---|---|",
    ]
    for name in found[0]["rows"]:
        rows = [one["rows"][name] for one in found]
        recall = statistics.mean(row["mean"] for row in rows)
        share = statistics.mean(
            row["mean"] / one["rows"]["full training"]["mean"] for row, one in zip(rows, found, strict=True)
        )
        others = statistics.mean(row["others"] for row in rows)
        lost = statistics.mean(row["others"] - one["before"] for row, one in zip(rows, found, strict=True))
        lines.append(f"| {name} | {100 * recall:.1f} | {100 * share:.1f} | {100 * others:.2f} | {100 * lost:+.2f} |")
    lines += ["", "| recall on test, % (seed 0) | " + " | ".join(leaf.rpartition("/")[2] for leaf in LEAVES) + " |"]
    lines += ["|---" * (1 + len(LEAVES)) + "|"]
    for name, row in found[0]["rows"].items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * row['new'][leaf]:.0f}" for leaf in LEAVES) + " |")
    for name in found[0]["extensions"]:
        seconds = [one["extensions"][name]["seconds"] for one in found]
        features = [one["extensions"][name]["feature_seconds"] for one in found]
        lines += [
            "",
            f"{name}: {statistics.mean(seconds):.1f} s beside {statistics.mean(features):.0f} s for features, scores.",
        ]
    return "\n".join([*lines, "", *results["notes"], "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the grocery-store folder with train, val, test")
    parser.add_argument("--weights", default="DEFAULT", help="a MobileNetV2 state dict, or a torchvision name")
    parser.add_argument("--runs", type=Path, required=True, help="keep the runs here; finished ones stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE for both trainings")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the table, such as the load")
    parser.add_argument("--choose", action="store_true", help="compare numbers of prototypes; reads no test")
    options = parser.parse_args()
    if options.choose:
        choose(options, options.seeds[0])
        return
    measured = [measure(options, seed) for seed in options.seeds]
    results = {"machine": machine(), "settings": options.settings, "notes": options.note, "seeds": measured}
    write_results("extending", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
