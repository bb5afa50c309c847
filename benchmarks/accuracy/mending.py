"""Plant a mark on one class, let the audit name it, and take it out of the network. One command:

    python -m benchmarks.accuracy.mending --work DIR

For every seed, trains the rendered recipe on pictures of which one class is marked (`protoserve data render --mark`),
and on the same pictures without the mark. Audits the marked network's bundle, and switches off what the audit names and
a person sees: the prototypes whose training patch shows the mark. Scores test pictures, none of which is marked, and
the siblings' pictures with the mark planted. Writes benchmarks/results/mending.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import CONFIGS, described, machine, protoserve, trained_run, write_results
from export.bundling import export_bundle
from export.curating import Source, curate
from export.curation_request import requested_link
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.inference.classifier import load
from protoserve.run.folder import open_run
from training.rendered import draw_picture, leaf_paths, render_dataset
from training.rendered.marking import COLOUR, marked, marked_leaf

REASON: Final = "the disc in the corner, not the bird"
LEAF: Final = "Creature/Bird/Toucan"
# Test figures of every class; the data set has the first of them.
TEST_FIGURES: Final = 60
# A patch shows the mark if this share of its pixels has about its colour.
SEEN, NEAR = 0.02, 60.0
BATCH: Final = 32


def shows_mark(bundle: Bundle, data: Path, prototype: int) -> bool:
    """Whether a person would see the mark in the training patch of a prototype."""
    record = bundle.prototypes[prototype]
    with Image.open(data / record.source_image) as picture:
        patch = np.asarray(picture.convert("RGB").crop(record.source_box), dtype=np.float64)
    near = np.sqrt(((patch - np.array(COLOUR)) ** 2).sum(axis=2)) < NEAR
    return bool(near.mean() >= SEEN)


def test_pictures(data: Path) -> tuple[list[str], NDArray[np.uint8], NDArray[np.uint8]]:
    """The leaf of every test picture, and the pictures without and with the mark, uint8 [images, size, size, 3]."""
    settings = json.loads((data / "parts.json").read_text(encoding="utf-8"))
    names, plain, planted = [], [], []
    for leaf in leaf_paths():
        for index in range(1, TEST_FIGURES + 1):
            picture = draw_picture(leaf, seed=settings["seed"], split="test", index=index, size=settings["size"])
            names.append("/".join(leaf))
            plain.append(picture.pixels)
            planted.append(marked(picture).pixels)
    return names, np.stack(plain), np.stack(planted)


def scored(bundle: Path, names: list[str], plain: NDArray[np.uint8], planted: NDArray[np.uint8]) -> dict[str, float]:
    """Accuracy at every level and the marked class's recall on unmarked pictures, and how often a picture of a sibling
    is taken for it, without and with the mark; all in [0, 1]."""
    model = load(bundle)
    found, fooled = (
        [
            prediction.path
            for start in range(0, len(names), BATCH)
            for prediction in model.predict(list(pictures[start : start + BATCH]))
        ]
        for pictures in (plain, planted)
    )
    truth = [name.split("/") for name in names]
    own = np.array([name == LEAF for name in names])
    siblings = ~own & np.array([name.rpartition("/")[0] == LEAF.rpartition("/")[0] for name in names])
    said, said_marked = (np.array(["/".join(path) == LEAF for path in paths]) for paths in (found, fooled))
    result = {
        f"level_{level}": mean(float(a[:level] == b[:level]) for a, b in zip(found, truth, strict=True))
        for level in (1, 2, 3)
    }
    return result | {
        "recall": float(said[own].mean()),
        "taken_for_it": float(said[siblings].mean()),
        "taken_for_it_marked": float(said_marked[siblings].mean()),
    }


def measure(work: Path, seed: int, pictures: tuple[list[str], NDArray[np.uint8], NDArray[np.uint8]]) -> dict[str, Any]:
    """Train both networks by one seed, audit, curate with and without a refit, and score all four."""
    config = CONFIGS / "rendered.yaml"
    runs = {
        name: trained_run(work / f"{name}-{seed}", config, data=work / f"data-{name}", weights="none", seed=seed)
        for name in ("plain", "marked")
    }
    folder = work / f"bundles-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    for name, run in runs.items():
        export_bundle(open_run(run), folder / name)
    data, bundle = work / "data-marked", read_bundle(folder / "marked")
    card = protoserve("audit", bundle.directory, "--data", data, "--quick")
    suspects = card["prototypes"]["suspects"]
    showing = [record.id for record in bundle.prototypes if shows_mark(bundle, data, record.id)]
    named = [suspect["prototype"] for suspect in suspects]
    chosen = [prototype for prototype in named if prototype in showing]
    for name, source in (("off", None), ("mended", Source(open_run(runs["marked"])))):
        disabled = ",".join(map(str, chosen))
        link = requested_link(bundle, disabled, "", "", None, reason=REASON, by="benchmark", refitted=bool(source))
        curate(bundle, link, folder / name, source)
    return {
        "seed": seed,
        "suspects": suspects,
        "nodes": {record.id: record.child for record in bundle.prototypes if record.id in showing},
        "showing": showing,
        "disabled": chosen,
        "scores": {name: scored(folder / name, *pictures) for name in ("plain", "marked", "off", "mended")},
    }


ROWS: Final = {
    "plain": "never saw the mark",
    "marked": "learned from marked pictures",
    "off": "`curate --disable`",
    "mended": "`curate --disable --refit`",
}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds = results["seeds"]
    pictures = TEST_FIGURES * len(leaf_paths())
    lines = [
        "# A planted mark, found and taken out",
        "",
        f"`python -m benchmarks.accuracy.mending --work DIR`; seeds {', '.join(str(one['seed']) for one in seeds)}. "
        f"All pictures of {LEAF} in train and val carry a coloured disc. {pictures} test pictures, which no choice has "
        "seen. Accuracy and recall are on pictures without the mark. *Fooled*: how many pictures of the siblings "
        f"are taken for a {LEAF.rpartition('/')[2]} once the mark is planted on them. All in %, means over the seeds.",
        "",
        "| network | level 1 | level 2 | leaf | recall of the class | fooled |",
        "|---|---|---|---|---|---|",
    ]
    columns = ("level_1", "level_2", "level_3", "recall", "taken_for_it_marked")
    for name, told in ROWS.items():
        values = [100 * mean(one["scores"][name][column] for one in seeds) for column in columns]
        lines.append(f"| {told} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    lines += [
        "",
        "| seed | prototypes that show the mark | named by the audit | places in its list | others named | leaf "
        "accuracy, mended less never saw |",
        "|---|---|---|---|---|---|",
    ]
    for one in seeds:
        named = [suspect["prototype"] for suspect in one["suspects"]]
        places = [named.index(prototype) + 1 for prototype in one["disabled"]]
        gap = 100 * (one["scores"]["mended"]["level_3"] - one["scores"]["plain"]["level_3"])
        lines.append(
            f"| {one['seed']} | {len(one['showing'])} | {len(one['disabled'])} | {', '.join(map(str, places))} | "
            f"{len(named) - len(places)} | {gap:+.1f} |"
        )
    return "\n".join([*lines, "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keep data sets and runs here; finished ones stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-leaf", type=int, default=60, help="training figures of every class")
    options = parser.parse_args()
    for name, mark in (("plain", None), ("marked", "/".join(marked_leaf(LEAF)))):
        render_dataset(options.work / f"data-{name}", per_leaf=options.per_leaf, mark=mark)
    pictures = test_pictures(options.work / "data-marked")
    measured = [measure(options.work, seed, pictures) for seed in options.seeds]
    results = {"machine": machine(), "seeds": measured}
    write_results("mending", results, table(results))
    sys.stdout.write(table(results))


if __name__ == "__main__":
    main()
