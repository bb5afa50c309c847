"""The prototype autoencoder (Li, Liu, Chen, Rudin 2018) on MNIST and Fashion-MNIST, and its ablation. One command:

    python -m benchmarks.accuracy.autoencoder --mnist DIR --fashion DIR --runs RUNS

Trains and exports both runs, scores the exported bundles, and trains without R1 and without R2. Writes the table to
benchmarks/results/autoencoder.{json,md} and the figures to docs/. Keeps finished runs below RUNS.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.measuring import CONFIGS, ROOT, machine, protoserve, write_results
from protoserve.data.dataset import read_split
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import load_network

TAXONOMY = ROOT / "training" / "taxonomies" / "fashion-mnist.yaml"
DOCS = ROOT / "docs"


def with_taxonomy(data: Path, folder: Path) -> Path:
    """A data set of links to the same files, with a taxonomy that names its classes."""
    folder.mkdir(exist_ok=True)
    for file in data.glob("*-ubyte*"):
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    shutil.copyfile(TAXONOMY, folder / "taxonomy.yaml")
    return folder


def measure(config: str, data: Path, runs: Path) -> dict[str, Any]:
    """Train a run (or take the finished one), export it and score both."""
    run, bundle = runs / config, runs / f"bundle-{config}"
    if not (run / "model.pt").is_file():
        protoserve("train", CONFIGS / f"{config}.yaml", "--data", data, "--run", run, "--resume")
    export = ["export", str(run), "--to", "onnx,torchscript", "--bundle", str(bundle), "--name", config, "--overwrite"]
    subprocess.run([sys.executable, "-c", "from protoserve.cli.root import main; main()", *export], check=True)
    return {
        "run": json.loads((run / "metrics.json").read_text()),
        "config": json.loads((run / "provenance.json").read_text())["config"],
        "evaluate": protoserve("evaluate", run, "--data", data, "--split", "test"),
        "validate": protoserve("validate", bundle, "--data", data, "--split", "test"),
        "parity": json.loads((bundle / "parity.json").read_text()),
        "own_prototype_first": own_prototype_first(run, data),
    }


def own_prototype_first(run: Path, data: Path) -> dict[str, float]:
    """The share of test pictures whose strongest evidence is a prototype of the predicted leaf, for the published sums
    of distances and for the references that the exported network has."""
    network, _, _ = load_network(run / "model.pt")
    assert isinstance(network, PrototypeAutoencoder)
    head, taxonomy = network.head, network.head.taxonomy
    pixels = read_split(data, "test", taxonomy).pixels
    images = torch.from_numpy(pixels)[..., None].expand(-1, -1, -1, 3)
    assert head.reference is not None
    reference, found = head.reference.clone(), {}
    for name, values in {"published": torch.zeros_like(reference), "references": reference}.items():
        head.reference.copy_(values)
        with torch.inference_mode():
            explained = [network.explain(piece, 1) for piece in images.split(1000)]
        path, first = (
            torch.cat([getattr(one, field) for one in explained]) for field in ("path", "evidence_prototype")
        )
        last = (path >= 0).sum(1, keepdim=True) - 1
        leaf, strongest = path.gather(1, last)[:, 0], first[:, :, 0].gather(1, last)[:, 0]
        found[name] = float((head.grouping.prototype_child[strongest] == leaf).double().mean())
    return found


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# The prototype autoencoder (Li et al. 2018)",
        "",
        "Made by `python -m benchmarks.accuracy.autoencoder --mnist DIR --fashion DIR`; all figures in "
        "`autoencoder.json`.",
        "The published network: maps 32-32-32-10, codes of 40, 15 prototypes, batch 250, Adam, elastic deformation.",
        "The weights of the losses and the learning rate are the published ones, too. Starting prototypes as codes of",
        "training pictures was chosen on 6,000 pictures held out of train, before test was seen. One seed. The paper",
        "reports about 99.2 % on MNIST; its code trains for 1,500 epochs.",
        "",
        "| data | epochs | training, s | held out, % | test, % | test, exported bundle, % | reconstruction error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("mnist", "fashion-mnist"):
        found = results[name]
        run = found["run"]
        lines.append(
            f"| {name} | {found['config']['autoencoder']['epochs']} | {run['seconds']:.0f} "
            f"| {100 * run['selection']['accuracy']['leaf']:.2f} | {100 * found['evaluate']['accuracy']['leaf']:.2f} "
            f"| {100 * found['validate']['accuracy']['leaf']:.2f} | {run['autoencoder']['reconstruction error']:.2f} |"
        )
    levels = results["fashion-mnist"]["evaluate"]["accuracy"]
    worst = max(
        max(report[f"batch_{size}"]["worst_difference"].values())
        for name in ("mnist", "fashion-mnist")
        for report in results[name]["parity"].values()
        for size in (1, 3, 8)
    )
    lines += [
        "",
        "Fashion-MNIST along the tree of `training/taxonomies/fashion-mnist.yaml`, test accuracy in %: "
        + ", ".join(f"{level.replace('_', ' ')} {100 * value:.2f}" for level, value in levels.items())
        + ".",
        "",
        "Share of test pictures, in %, whose strongest evidence is a prototype of the predicted leaf, by the published",
        "sums of distances and by the same sums with references: "
        + ", ".join(
            f"{name} {100 * results[name]['own_prototype_first']['published']:.2f} and "
            f"{100 * results[name]['own_prototype_first']['references']:.2f}"
            for name in ("mnist", "fashion-mnist")
        )
        + ".",
        "",
        f"Exported graphs (onnx, torchscript) and the network, largest difference of any output: {worst:.1e}.",
        "",
        f"## Without R1, without R2 (MNIST, {results['ablation']['epochs']} epochs each)",
        "",
        "| | test, % | reconstruction error | prototype to nearest code | code to nearest prototype "
        "| drawn prototype to nearest picture |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["ablation"]["rows"]:
        lines.append(
            f"| {row['variant']} | {row['leaf, %']:.2f} | {row['reconstruction error']:.2f} "
            f"| {row['prototype to code']:.4f} | {row['code to prototype']:.4f} "
            f"| {row['drawn prototype to picture']:.1f} |"
        )
    lines += [
        "",
        "Distances between codes are divided by the mean squared distance between two codes. Errors and differences of",
        "pictures are squared and summed over 784 pixels in [0, 1]. R1 pulls prototypes to codes, R2 codes to",
        "prototypes.",
        "",
        "![Decoded prototypes](../../docs/ablation.webp)",
        "",
    ]
    described = results["machine"]
    lines.append(
        f"Machine: {described['processor']}, {described['cores']} cores, shared with other work, one thread; Python "
        f"{described['python']}, "
        + ", ".join(f"{package} {number}" for package, number in described["versions"].items())
        + "."
    )
    return "\n".join(lines) + "\n"


def small(picture: Path, file: Path) -> None:
    """Save a figure as a small WebP."""
    with Image.open(picture) as opened:
        opened.convert("RGB").save(file, "WEBP", quality=80, method=6)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="the folder with MNIST's four IDX files")
    parser.add_argument("--fashion", type=Path, required=True, help="the folder with Fashion-MNIST's")
    parser.add_argument("--ablation-epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, help="keep the runs here; finished ones are not trained again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        runs.mkdir(parents=True, exist_ok=True)
        results: dict[str, Any] = {"machine": machine()}
        results["mnist"] = measure("mnist", options.mnist, runs)
        results["fashion-mnist"] = measure("fashion-mnist", with_taxonomy(options.fashion, runs / "fashion-data"), runs)
        epochs, ablation = str(options.ablation_epochs), runs / "ablation"
        config = CONFIGS / "mnist.yaml"
        rows = protoserve("ablate", config, "--data", options.mnist, "--out", ablation, "--epochs", epochs)
        results["ablation"] = {"epochs": options.ablation_epochs, "rows": rows}
        small(ablation / "prototypes.png", DOCS / "ablation.webp")
        small(runs / "mnist" / "prototypes.png", DOCS / "mnist-prototypes.webp")
    write_results("autoencoder", results, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
