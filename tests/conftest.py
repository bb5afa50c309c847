"""A small, real bundle that most tests read: a random network on an uneven taxonomy, exported like any other run."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# prometheus_client reads this at import; every test process gets a directory of its own.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="protoserve-metrics-"))
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
# torch's threads wait by spinning, which starves the servers and commands that tests start beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LEAVES = ("Animal/Ape/Gibbon", "Animal/Ape/Orangutan", "Animal/Lion", "Tool/Blade/Knife", "Scuba")
SIZE = (64, 96)


def make_run(
    directory: Path,
    kind: str = "hierarchical",
    leaves: tuple[str, ...] = LEAVES,
    *,
    similarity: str = "log1p",
    seed: int = 0,
    stride: int = 8,
    latent: str = "sigmoid",
    smoothing: int = 1,
    hidden: int | None = None,
    zero: float | None = None,
) -> Path:
    """A run folder of a random but projected network: input 64 × 96 pixels, 8 × 12 cells, 3 prototypes per child."""
    import torch

    from protoserve.images.decoding import decode
    from protoserve.images.fitting import fit
    from protoserve.images.geometry import InputRule
    from protoserve.networks.head import prototype_children
    from protoserve.networks.model_file import NetworkDescription, PrototypeSource, build, save_network
    from protoserve.networks.network import AddOn, PrototypeNetwork
    from protoserve.taxonomy import Taxonomy

    taxonomy = Taxonomy.from_paths(leaves)
    rule = InputRule(height=SIZE[0], width=SIZE[1], resize="stretch")
    description = NetworkDescription(
        kind=kind,
        taxonomy=taxonomy.to_dict(),
        input=rule,
        backbone="resnet18",
        stride=stride,
        reduced=24,
        dimensions=16,
        similarity=similarity,
        latent=latent,
        smoothing=smoothing,
        hidden=hidden,
        zero=zero,
        prototype_child=prototype_children(taxonomy, kind, 3),
    )
    torch.manual_seed(seed)
    network = build(description).eval()
    assert isinstance(network, PrototypeNetwork)
    generator = np.random.default_rng(seed)
    (directory / "prototypes").mkdir(parents=True)
    samples, sources = [], []
    with torch.inference_mode():
        network.head.weight += 0.1 * torch.randn_like(network.head.weight)
        if isinstance(network.add_on[1], AddOn):
            network.add_on[1].bend.weight += 0.1 * torch.randn_like(network.add_on[1].bend.weight)
        for number in range(len(description.prototype_child)):
            noise = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC)
            picture.save(directory / "prototypes" / f"{number:04d}.webp")
            fitted = fit(decode(picture), rule)
            latent = network.latent(network.features(torch.from_numpy(fitted.array[None])))
            rows, columns = latent.shape[2:]
            cell = int(generator.integers(rows * columns))
            network.head.prototypes[number] = latent.flatten(2)[0, :, cell]
            box = fitted.geometry.cell_box(cell, rows, columns)
            samples.append(fitted.array)
            sources.append(
                PrototypeSource(
                    image=f"train/{number:04d}.png",
                    cell=cell,
                    rows=rows,
                    columns=columns,
                    box=box,
                    distance=0.0,
                )
            )
    np.save(directory / "samples.npy", np.stack(samples))
    save_network(directory / "model.pt", network, description, sources)
    (directory / "metrics.json").write_text(
        json.dumps({"test": {"images": 10, "accuracy": {"leaf": 0.2}, "macro_accuracy": 0.2}})
    )
    (directory / "provenance.json").write_text(json.dumps({"seed": 0}))
    return directory


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a random hierarchical network."""
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def flat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a random ProtoPNet: the same leaves in one softmax."""
    return make_run(tmp_path_factory.mktemp("runs") / "flat", kind="flat")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as a bundle with both targets; tests must not change it (copy it first)."""
    from export.bundling import export_bundle
    from protoserve.run.folder import open_run

    directory = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(open_run(tiny_run), directory, ("onnx", "torchscript"))
    return directory


@pytest.fixture(scope="session")
def flat_bundle(flat_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ProtoPNet as a bundle with both targets."""
    from export.bundling import export_bundle
    from protoserve.run.folder import open_run

    directory = tmp_path_factory.mktemp("bundles") / "flat"
    export_bundle(open_run(flat_run), directory, ("onnx", "torchscript"))
    return directory


@pytest.fixture(scope="session")
def twin_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random network on the same taxonomy, with larger cells: 4 × 6 of them."""
    return make_run(tmp_path_factory.mktemp("runs") / "twin", seed=1, stride=16)


@pytest.fixture(scope="session")
def twin_bundle(twin_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as a bundle, to make an ensemble with `tiny_bundle`."""
    from export.bundling import export_bundle
    from protoserve.run.folder import open_run

    directory = tmp_path_factory.mktemp("bundles") / "twin"
    export_bundle(open_run(twin_run), directory)
    return directory


def idx_bytes(array: np.ndarray) -> bytes:
    """The content of an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(scope="session")
def tiny_idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set like MNIST in small: 200 + 40 grey pictures, 20 × 16 pixels, of 4 coarse patterns under noise."""
    directory = tmp_path_factory.mktemp("idx") / "tiny"
    directory.mkdir()
    generator = np.random.default_rng(0)
    patterns = np.kron(generator.integers(0, 2, (4, 4, 4)) * 200, np.ones((5, 4), dtype=np.int64))
    for prefix, count in (("train", 200), ("t10k", 40)):
        labels = (np.arange(count) % 4).astype(np.uint8)
        images = (patterns[labels] + generator.integers(0, 50, (count, 20, 16))).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (directory / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return directory


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small JPEG, wider than high."""
    noise = np.random.default_rng(1).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("pictures") / "photograph.jpg"
    Image.fromarray(noise).resize((200, 150), Image.Resampling.BICUBIC).save(file, quality=95)
    return file


def write_data(run: Path, directory: Path) -> None:
    """A data set for a run without one: its sample pictures, each under the leaf that the network gives it and every
    leaf with some; in val only those that the network is sure of, as a trained one is of most. The run then says that
    it learned from there."""
    import torch

    from protoserve.data.dataset import read_split, read_taxonomy
    from protoserve.networks.model_file import load_network

    network, _, _ = load_network(run / "model.pt")
    samples = np.load(run / "samples.npy")
    with torch.inference_mode():
        explained = network.explain(torch.from_numpy(samples), 1)
    path, taxonomy = explained.path.numpy(), network.head.taxonomy
    best, second = explained.log_probability[:, list(taxonomy.leaves)].topk(2, dim=1).values.T
    names = [taxonomy.names[nodes[nodes >= 0][-1]] for nodes in path]
    names[: len(taxonomy.leaves)] = [taxonomy.names[leaf] for leaf in taxonomy.leaves]
    for split in ("train", "val"):
        for number, (name, sample) in enumerate(zip(names, samples, strict=True)):
            if split == "val" and best[number] - second[number] < 0.5:
                continue
            (directory / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample).save(directory / split / name / f"{number:02d}.png")
    learned = read_split(directory, "train", read_taxonomy(directory))
    provenance = {
        "config": {"seed": 0, "data": {"hold_out": 0.0, "seed": None}},
        "data": {"root": directory.name, "fingerprint": learned.fingerprint()},
    }
    (run / "provenance.json").write_text(json.dumps(provenance))


@pytest.fixture(scope="session")
def learned(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, data): the tiny run, and a data set that it says to have learned from."""
    place = tmp_path_factory.mktemp("learned")
    shutil.copytree(tiny_run, place / "run")
    write_data(place / "run", place / "data")
    return place / "run", place / "data"


@pytest.fixture(scope="session")
def edge_bundle(learned: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as a bundle with all targets that take any batch."""
    from export.bundling import export_bundle
    from protoserve.run.folder import open_run

    run, data = learned
    directory = tmp_path_factory.mktemp("bundles") / "edge"
    targets = (
        "onnx",
        "onnx-edge",
        "onnx-routed",
        "onnx-fp16",
        "onnx-int8",
        "ort",
        "torchscript",
        "torch-export",
        "openvino",
        "executorch",
    )
    export_bundle(open_run(run), directory, targets, data=data)
    return directory


@pytest.fixture(scope="session")
def resizing_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a bundle whose files for the edge take one picture of any size."""
    from export.bundling import export_bundle
    from export.sources import EdgeOptions
    from protoserve.run.folder import open_run

    directory = tmp_path_factory.mktemp("bundles") / "resizing"
    targets = ("onnx", "onnx-edge", "onnx-routed", "torchscript", "torch-export", "openvino")
    export_bundle(open_run(tiny_run), directory, targets, options=EdgeOptions(resize=True))
    return directory
