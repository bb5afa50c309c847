"""Measure how well classes of Grocery Store are added from a few photographs without training. One command:

    python -m benchmarks.accuracy.extending --data DIR --weights FILE --runs RUNS

Trains without the leaves of `benchmarks.accuracy.novelty`, adds them by `protoserve extend` with 5 and with 20
photographs of train each, and scores the test split. Beside it: the nearest class mean of pooled features (the mean of
the same photographs for new leaves, of all for old ones), and a full training with all photographs of every leaf.
Writes benchmarks/results/extending.{json,md}. `--choose` compares the settings of the refit instead, on val and on
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

from benchmarks.accuracy.novelty import CONFIG, LEAVES
from benchmarks.measuring import described, machine, trained_run, write_results
from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.networks.model_file import Network, load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.similarities import read_similarities
from protoserve.taxonomy import Taxonomy
from training.data.pictures import batches, fitted
from training.extending.carrying import carried_head, new_prototypes
from training.extending.changes import Changes, changed_tree
from training.extending.extending import Extension, extend, groups_to_fit
from training.extending.finished import read_finished
from training.extending.fitting import fit_groups, fitted_head
from training.extending.measuring import Stopwatch, frozen_feed, log_probability, similarities
from training.extending.pictures import learned_pictures, new_pictures
from training.extending.refitting import RefitSetting
from training.features.shared_cache import GIGABYTE, SharedCache
from training.loop.answers import answer_dataset

COUNTS = (5, 20)
RIDGES, BALANCES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), (0.0, 0.5, 1.0)
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


def scored(network: Network, dataset: Dataset, rule: Any) -> NDArray[np.int64]:
    """The predicted leaf of each image, int64 [images], as an index of the network's `taxonomy.leaves`."""
    answers = answer_dataset(network, dataset, rule, torch.device("cpu"), QUIET).log_probability
    assert isinstance(network, PrototypeNetwork)
    return np.asarray(answers[:, list(network.head.taxonomy.leaves)].argmax(axis=1))


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


def pooled(network: PrototypeNetwork, dataset: Dataset, rule: Any, numbers: Sequence[int]) -> NDArray[np.float32]:
    """float32 [images, width]: the mean backbone features of images, at unit length."""
    rows = []
    with torch.inference_mode():
        for _, pictures in batches(lambda number: fitted(dataset, number, rule).array, numbers, 64):
            maps = network.backbone(network.normalise(pictures))
            rows.append(torch.nn.functional.normalize(maps.mean((2, 3))).numpy())
    return np.concatenate(rows)


def nearest_means(
    train: NDArray[np.float32], given: NDArray[np.bool_], leaves: NDArray[np.int64], test: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The leaf with the nearest mean feature, int64 [test images], of the `given` training images."""
    means = np.stack([train[given & (leaves == leaf)].mean(axis=0) for leaf in range(int(leaves.max()) + 1)])
    distance = (test**2).sum(axis=1)[:, None] - 2 * test @ means.T + (means**2).sum(axis=1)
    return np.asarray(distance.argmin(axis=1))


def measure(options: argparse.Namespace, seed: int, settings: list[str]) -> dict[str, Any]:
    """Train with and without the leaves by one seed, extend, and score all of them on test."""
    common: dict[str, Any] = {"data": options.data, "weights": options.weights, "seed": seed, "settings": settings}
    base = trained_run(options.runs / f"without-{seed}", CONFIG, left_out=LEAVES, **common)
    full = trained_run(options.runs / f"full-{seed}", CONFIG, **common)
    whole = read_taxonomy(options.data)
    test, train = (read_split(options.data, split, whole) for split in ("test", "train"))
    network, description, _ = load_network(full / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    rows = {"full training": recalls(scored(network, test, description.input), test.leaves, whole)}
    rule, everything = description.input, range(len(train))
    features = pooled(network, train, rule, everything), pooled(network, test, rule, range(len(test)))
    before, _, _ = load_network(base / "model.pt")
    known = test.subset(np.flatnonzero([leaf_of(image) not in LEAVES for image in test.images]))
    assert isinstance(before, PrototypeNetwork)
    names = before.head.taxonomy.names
    truth = [whole.names[whole.leaves[leaf]] for leaf in known.leaves]
    found = [names[before.head.taxonomy.leaves[leaf]] for leaf in scored(before, known, rule)]
    base_accuracy = float(np.mean([a == b for a, b in zip(truth, found, strict=True)]))
    costs: dict[str, Extension] = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as scratch:
            folders = photographs(options.data, count, seed, Path(scratch) / "photographs")
            given = {f"train/{leaf}/{file.name}" for leaf, folder in folders.items() for file in folder.iterdir()}
            cache = SharedCache(options.runs / "cache", 50 * GIGABYTE)
            output = Path(scratch) / "extended"
            changes = Changes(added=folders)
            extension = extend(base, changes, options.data, output, tolerance=100, cache=cache, console=QUIET)
            changed, _, _ = load_network(output / "model.pt")
        assert isinstance(changed, PrototypeNetwork)
        mapped = [whole.index[changed.head.taxonomy.names[leaf]] for leaf in changed.head.taxonomy.leaves]
        place = {node: leaf for leaf, node in enumerate(whole.leaves)}
        predicted = np.array([place[node] for node in mapped])[scored(changed, test, rule)]
        rows[f"extend, {count}"] = recalls(predicted, test.leaves, whole)
        costs[f"extend, {count}"] = extension
        kept = np.array([image in given or leaf_of(image) not in LEAVES for image in train.images])
        means = nearest_means(features[0], kept, train.leaves, features[1])
        rows[f"nearest class mean, {count}"] = recalls(means, test.leaves, whole)
    return {
        "seed": seed,
        "before": base_accuracy,
        "rows": {name: {"new": row.new, "mean": row.mean, "others": row.others} for name, row in rows.items()},
        "extensions": {name: extension.document() for name, extension in costs.items()},
    }


def choose(options: argparse.Namespace, seed: int) -> None:
    """Print, for settings of the refit, the recall of new leaves on photographs of train that were not given, and the
    accuracy of the others on val."""
    base = trained_run(
        options.runs / f"without-{seed}",
        CONFIG,
        data=options.data,
        weights=options.weights,
        seed=seed,
        settings=options.settings,
        left_out=LEAVES,
    )
    place = torch.device("cpu")
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as scratch:
            finished, kept = read_finished(base), read_similarities(base, len(read_finished(base).sources))
            network, config = finished.network, finished.config
            folders = photographs(options.data, count, seed, Path(scratch) / "photographs")
            given = {f"train/{leaf}/{file.name}" for leaf, folder in folders.items() for file in folder.iterdir()}
            changes = Changes(added=folders)
            tree = changed_tree(finished.taxonomy, changes)
            old = learned_pictures(base, options.data, finished.taxonomy, kept, config, QUIET)
            new = new_pictures(folders, tree, options.data, config, has_val=True, skip_broken=False, console=QUIET)
            carried = carried_head(network.head, tree, new_prototypes(network.head, tree, 0))
            common: dict[str, Any] = {"device": place, "console": QUIET}
            cache = SharedCache(options.runs / "cache", 50 * GIGABYTE)
            result = fitted_head(
                *(network, carried, tree, old, new, kept, config, (), RefitSetting()),
                directory=Path(scratch) / "cache",
                cache=cache,
                watch=Stopwatch(),
                **common,
            )
            train = read_split(options.data, "train", tree.taxonomy)
            rest = [
                number for number, image in enumerate(train.images) if image not in given and leaf_of(image) in LEAVES
            ]
            part, start = train.subset(rest), carried.head.weight.detach().clone()
            feed = frozen_feed(part, part, network, config, Path(scratch) / "rest", **common)
            similarity = similarities(network, carried.head, feed.cached("fit"), 64, place)
            leaves, old_leaves = list(tree.taxonomy.leaves), tree.leaf_of[old[1].leaves]
            groups = groups_to_fit(carried, tree, changes)
            for ridge in RIDGES:
                for balance in BALANCES:
                    with torch.no_grad():
                        carried.head.weight.copy_(start)
                    setting = RefitSetting(ridge, balance)
                    fit_groups(carried.head, result.learned, result.fit, len(new[0]), groups, setting)
                    found = log_probability(carried.head, similarity)[:, leaves].argmax(axis=1)
                    others = log_probability(carried.head, result.selection_similarity)[:, leaves].argmax(axis=1)
                    by_leaf = [np.mean(found[part.leaves == leaf] == leaf) for leaf in np.unique(part.leaves)]
                    print(
                        f"{count:>3} photographs, ridge {ridge:g}, balance {balance:g}: "
                        f"new {100 * np.mean(by_leaf):.1f}, "
                        f"others on val {100 * np.mean(others[: len(old_leaves)] == old_leaves):.2f}",
                        flush=True,
                    )


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
    parser.add_argument("--choose", action="store_true", help="compare settings of the refit; reads no test")
    options = parser.parse_args()
    if options.choose:
        choose(options, options.seeds[0])
        return
    measured = [measure(options, seed, options.settings) for seed in options.seeds]
    results = {"machine": machine(), "settings": options.settings, "notes": options.note, "seeds": measured}
    write_results("extending", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
