"""The JPEG test: does a network read how pictures were compressed? (Hoffmann et al. 2021)

    python -m benchmarks.accuracy.jpeg --work DIR

Half of the classes of the rendered set are trained on pictures that were compressed as JPEG at quality 20, which people
hardly see. Beside it trains a network on the pictures as they are. Scores test pictures as they are, compressed as in
training, and the other way round, and how much of the first evidence's similarity compression takes away. Writes
benchmarks/results/jpeg.{json,md}.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import CONFIGS, described, machine, trained_run, write_results
from export.bundling import export_bundle
from protoserve.audit.locality import similarity_after, similarity_at
from protoserve.audit.perturbation import relative_drop
from protoserve.audit.subject import Subject, pieces_of
from protoserve.bundle.folder import read_bundle
from protoserve.inference.engine import Engine
from protoserve.run.folder import open_run
from training.rendered import draw_picture, leaf_paths, render_dataset

QUALITY: Final = 20
# Every second class: some of every parent's children, and not all.
COMPRESSED: Final = frozenset(leaf_paths()[::2])
LEARNED: Final = ("train", "val")
SIZE: Final = 96


def compressed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture [height, width, 3] compressed as JPEG of `QUALITY`, and decoded again."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY)
    with Image.open(stream) as decoded:
        return np.asarray(decoded)


def half_compressed(data: Path, directory: Path) -> None:
    """Copy a rendered data set to `directory`, where the pictures of `COMPRESSED` in `LEARNED` are compressed.

    They stay PNG files, so that only their pixels tell. Nothing is done if the folder exists."""
    if directory.is_dir():
        return
    draft = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(data, draft)
    for split in LEARNED:
        for leaf in COMPRESSED:
            for file in draft.joinpath(split, *leaf).glob("*.png"):
                with Image.open(file) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                Image.fromarray(compressed(pixels)).save(file)
    draft.rename(directory)


def measure(work: Path, seed: int, figures: int, settings: list[str]) -> dict[str, Any]:
    """Train both networks by one seed, and score them on `figures` test pictures of every class."""
    leaves = [leaf for leaf in leaf_paths() for _ in range(figures)]
    plain = np.stack(
        [
            draw_picture(leaf, seed=0, split="test", index=number % figures + 1, size=SIZE).pixels
            for number, leaf in enumerate(leaves)
        ]
    )
    jpeg = np.stack([compressed(picture) for picture in plain])
    marked = np.array([leaf in COMPRESSED for leaf in leaves])
    versions = {
        "plain": plain,
        "as_trained": np.where(marked[:, None, None, None], jpeg, plain),
        "other_half": np.where(marked[:, None, None, None], plain, jpeg),
    }
    found = {}
    for name in ("plain", "half"):
        run = trained_run(
            work / f"{name}-{seed}",
            CONFIGS / "rendered.yaml",
            data=work / f"data-{name}",
            weights="none",
            seed=seed,
            settings=settings,
        )
        folder = work / f"bundle-{name}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        export_bundle(open_run(run), folder)
        bundle = read_bundle(folder)
        subject = Subject.of(bundle, Engine(bundle, device="cpu"))
        truth = np.array([[bundle.taxonomy.index["/".join(leaf[:level])] for level in (1, 2, 3)] for leaf in leaves])
        scores = {
            version: (subject.run(pictures).path == truth).mean(axis=0).tolist()
            for version, pictures in versions.items()
        }
        drops = similarity_drops(subject, plain, jpeg)
        found[name] = {
            "accuracy": scores,
            "drop": {"compressed": float(np.nanmean(drops[marked])), "others": float(np.nanmean(drops[~marked]))},
        }
    return {"seed": seed, "networks": found}


def similarity_drops(subject: Subject, plain: NDArray[np.uint8], jpeg: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the share of the first evidence's similarity at its cell that compression takes away at the leaf's level,
    float64 [pictures]; NaN where the graph does not tell."""
    before, after = subject.run(plain), subject.run(jpeg)
    drops = np.full(len(plain), np.nan)
    for piece in pieces_of(before):
        if piece.level == before.path.shape[1]:
            prototype, cell = int(piece.prototypes[0]), int(piece.cells[0])
            similarity, _ = similarity_at(before, piece.image, prototype, cell)
            changed, _, _ = similarity_after(after, piece.image, prototype, cell, similarity)
            drops[piece.image] = relative_drop(similarity, changed)
    return drops


ROWS: Final = {"plain": "as drawn", "half": f"half of the classes at quality {QUALITY}"}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds = results["seeds"]
    lines = [
        "# The JPEG test",
        "",
        f"`python -m benchmarks.accuracy.jpeg --work DIR`; {results['per_leaf']} training figures of every class, "
        f"settings {', '.join(results['settings']) or 'of the recipe'}, seeds "
        f"{', '.join(str(one['seed']) for one in seeds)}. {results['figures'] * len(leaf_paths())} test pictures, "
        "which no choice has seen. Leaf accuracy in %, means over the seeds. A network that reads the compression is "
        "better on pictures compressed as in training than on those compressed the other way round.",
        "",
        "| trained on pictures | test as drawn | compressed as in training | the other half | shortcut, points |",
        "|---|---|---|---|---|",
    ]
    for name, told in ROWS.items():
        plain, same, other = (
            100 * mean(one["networks"][name]["accuracy"][version][2] for one in seeds)
            for version in ("plain", "as_trained", "other_half")
        )
        lines.append(f"| {told} | {plain:.1f} | {same:.1f} | {other:.1f} | {same - other:+.1f} |")
    lines += [
        "",
        "Share of the first evidence's similarity that compression takes away, at leaves (below 0: compression adds to "
        "it):",
        "",
        "| trained on pictures | classes that were compressed | the others |",
        "|---|---|---|",
    ]
    for name, told in ROWS.items():
        own, others = (mean(one["networks"][name]["drop"][kind] for one in seeds) for kind in ("compressed", "others"))
        lines.append(f"| {told} | {own:.3f} | {others:.3f} |")
    return "\n".join([*lines, "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keep data sets and runs here; finished ones stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--per-leaf", type=int, default=60, help="training figures of every class")
    parser.add_argument("--figures", type=int, default=15, help="test figures of every class")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE for training")
    options = parser.parse_args()
    render_dataset(options.work / "data-plain", per_leaf=options.per_leaf)
    half_compressed(options.work / "data-plain", options.work / "data-half")
    measured = [measure(options.work, seed, options.figures, options.settings) for seed in options.seeds]
    results = {
        "machine": machine(),
        "per_leaf": options.per_leaf,
        "figures": options.figures,
        "settings": options.settings,
        "seeds": measured,
    }
    write_results("jpeg", results, table(results))
    sys.stdout.write(table(results))


if __name__ == "__main__":
    main()
