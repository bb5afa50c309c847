"""Small, real runs and bundles that most tests read: random networks on an uneven taxonomy, exported like any other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

import numpy as np
from filelock import FileLock
from PIL import Image

if TYPE_CHECKING:
    import pytest

    from export.sources import EdgeOptions
    from protoserve.bundle.folder import Bundle
    from protoserve.networks.network import Latent
    from protoserve.networks.similarity import SimilarityForm
    from protoserve.taxonomy import Kind

LEAVES = ("Animal/Ape/Gibbon", "Animal/Ape/Orangutan", "Animal/Lion", "Tool/Blade/Knife", "Scuba")
SIZE = (64, 96)

# The calibrated bundle's, by parent in the taxonomy's order. Tool has one child, so nothing competes there.
TEMPERATURE = {"": 0.5, "Animal": 2.0, "Animal/Ape": 3.0}
# Every conditional probability passes at the root and below Ape; none passes among Animal's children.
NOVELTY = {"score": "probability", "true_positive_rate": 0.9, "thresholds": {"": 0.0, "Animal": 1.5, "Animal/Ape": 0.0}}


def make_run(
    directory: Path,
    kind: Kind = "hierarchical",
    leaves: tuple[str, ...] = LEAVES,
    *,
    similarity: SimilarityForm = "log1p",
    seed: int = 0,
    stride: int = 8,
    latent: Latent = "sigmoid",
    smoothing: int = 1,
    tile: int | None = None,
    tile_step: int | None = None,
    receptive_field: int | None = None,
    hidden: int | None = None,
    zero: float | None = None,
) -> Path:
    """A run folder of a random but projected network: input 64 × 96 pixels, 8 × 12 cells without
    tiles, 3 prototypes per child."""
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
        tile=tile,
        tile_step=tile_step,
        receptive_field=receptive_field,
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
        network.head.weight.add_(0.1 * torch.randn_like(network.head.weight))
        if isinstance(network.add_on[1], AddOn):
            network.add_on[1].bend.weight.add_(0.1 * torch.randn_like(network.add_on[1].bend.weight))
        for prototype in range(len(description.prototype_child)):
            noise = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC)
            picture.save(directory / "prototypes" / f"{prototype:04d}.webp")
            fitted = fit(decode(picture), rule)
            vectors = network.latent(network.features(torch.from_numpy(fitted.array[None])))
            rows, columns = vectors.shape[2:]
            cell = int(generator.integers(rows * columns))
            network.head.prototypes[prototype] = vectors.flatten(2)[0, :, cell]
            box = fitted.geometry.cell_box(cell, network.cells(rows, columns))
            samples.append(fitted.array)
            sources.append(
                PrototypeSource(
                    image=f"train/{prototype:04d}.png",
                    cell=cell,
                    rows=rows,
                    columns=columns,
                    box=box,
                    distance=0.0,
                )
            )
        network.head.usual.copy_(network(torch.from_numpy(np.stack(samples))).similarity.mean(0))
    np.save(directory / "samples.npy", np.stack(samples))
    save_network(directory / "model.pt", network, description, sources)
    (directory / "metrics.json").write_text(
        json.dumps({"test": {"images": 10, "accuracy": {"leaf": 0.2}, "macro_accuracy": 0.2}})
    )
    (directory / "provenance.json").write_text(json.dumps({"seed": 0}))
    return directory


def write_data(run: Path, directory: Path) -> None:
    """Write a data set for a run without one, and name it in the run's provenance.

    Each sample picture lies under the leaf that the network predicts, and every leaf has pictures. The split val holds
    only the pictures whose best leaf and first evidence lead clearly, as most do once a network is trained: on a random
    network, eight bits decide near ties differently on processors with and without VNNI.
    """
    import torch

    from protoserve.data.dataset import read_split, read_taxonomy
    from protoserve.networks.model_file import load_network
    from protoserve.networks.network import PrototypeNetwork

    network, _, _ = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    samples = np.load(run / "samples.npy")
    with torch.inference_mode():
        explained = network.explain(torch.from_numpy(samples), 2)
    path, taxonomy = explained.path.numpy(), network.head.taxonomy
    best, second = explained.log_probability[:, list(taxonomy.leaves)].topk(2, dim=1).values.T.numpy()
    contribution = explained.evidence_contribution.numpy()
    lead = np.where(explained.evidence_prototype[..., 1] < 0, np.inf, contribution[..., 0] - contribution[..., 1]).min(
        1
    )
    clear = (best - second >= 0.5) & (lead >= 0.1)
    names = [taxonomy.names[nodes[nodes >= 0][-1]] for nodes in path]
    names[: len(taxonomy.leaves)] = [taxonomy.names[leaf] for leaf in taxonomy.leaves]
    for split in ("train", "val"):
        for sample_index, (name, sample) in enumerate(zip(names, samples, strict=True)):
            if split == "val" and not clear[sample_index]:
                continue
            (directory / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample).save(directory / split / name / f"{sample_index:02d}.png")
    learned = read_split(directory, "train", read_taxonomy(directory))
    provenance = {
        "config": {"seed": 0, "data": {"hold_out": 0.0, "seed": None}},
        "data": {"root": directory.name, "fingerprint": learned.fingerprint()},
    }
    (run / "provenance.json").write_text(json.dumps(provenance))


def export_calibrated(directory: Path) -> None:
    """Make `directory/run`, a run like `run()` but with temperatures and novelty thresholds, and `directory/bundle`."""
    import torch

    from export.bundling import export_bundle
    from protoserve.networks.model_file import load_network, save_network
    from protoserve.networks.network import PrototypeNetwork
    from protoserve.run.folder import open_run

    run = make_run(directory / "run")
    network, description, sources = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    network.head.temperature.copy_(torch.tensor(list(TEMPERATURE.values())))
    save_network(run / "model.pt", network, description, sources)
    shares = {"known_at_parents": 0.9, "known_throughout": 0.8}
    (run / "metrics.json").write_text(json.dumps({"novelty": {**NOVELTY, "test": shares}}))
    export_bundle(open_run(run), directory / "bundle")


# Leaves at depths 1 to 5, an only child, and groups of two to four.
DEEP = (
    *(f"A/B/C/{leaf}" for leaf in "uvwx"),
    *("A/B/D/e/x", "A/B/D/e/y", "A/B/D/f", "A/g", "A/h/i", "A/h/j"),
    *("K/only/l", "K/only/m", "N"),
)


def export_routed(directory: Path) -> None:
    """Make `directory/bundle`, of a random network over a deep and uneven tree, with novelty thresholds, temperatures
    and a promise. Its routed graph expands one node of every level, so that the full graph must often answer."""
    import pytest
    import torch

    from export.bundling import export_bundle
    from export.graph import RoutedGraph
    from export.targets import table
    from protoserve.bundle.folder import read_bundle
    from protoserve.networks.model_file import load_network, save_network
    from protoserve.networks.network import PrototypeNetwork
    from protoserve.novelty import NoveltyTable, parent_names
    from protoserve.run.folder import open_run
    from tests.promises import promising, sure_above

    run = make_run(directory / "run", leaves=DEEP)
    network, description, sources = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    head = network.head
    torch.manual_seed(1)
    with torch.no_grad():
        # All logits are 0 where every similarity is usual, so that the pictures alone decide.
        head.weight.copy_(torch.randn_like(head.weight))
        for group, weight in enumerate(head.weight):
            usual = head.usual[head.grouping.prototype_group == group]
            own = weight[:, : len(usual)]
            own -= (own @ usual)[:, None] * usual / (usual @ usual)
        head.temperature.uniform_(0.5, 2.0)
        pictures = torch.from_numpy(np.load(run / "samples.npy"))
        found = network.explain(pictures, 1)
    tree = NoveltyTable.of(head.taxonomy, "hierarchical", description.prototype_child)
    arrays = found.log_probability.numpy(), found.logit.numpy(), found.similarity.numpy()
    middle = np.median(tree.scores("support", *arrays), axis=0).tolist()
    thresholds = dict(zip(parent_names(tree.groups, head.taxonomy), middle, strict=True))
    save_network(run / "model.pt", network, description, sources)
    novelty = {"score": "support", "true_positive_rate": 0.5, "thresholds": thresholds}
    shares = {"known_at_parents": 0.5, "known_throughout": 0.5}
    (run / "metrics.json").write_text(json.dumps({"novelty": {**novelty, "test": shares}}))
    with pytest.MonkeyPatch.context() as patched:
        narrow = lambda network, top_k, width: RoutedGraph(network, top_k, 1, trunk=0)  # noqa: E731
        patched.setattr(table, "RoutedGraph", narrow)
        export_bundle(open_run(run), directory / "plain", ("onnx", "onnx-routed"))
    plain = read_bundle(directory / "plain")
    promising(plain.directory, directory / "bundle", sure_above(plain.taxonomy, 0.4, len(tree.groups)))


def older_bundle(bundle: Bundle, directory: Path, *, weights: bool = True, usual: bool = False) -> Bundle:
    """Write the bundle as an older version exported it: format 1, without the outputs that came with format 2.

    Its graph keeps its order of evidence and its logits, which are centred. Without `weights` it has no last-layer
    weights; with `usual` it has usual similarities and priors, as one that was
    centred since.
    """
    import onnx

    from protoserve.bundle.folder import MANIFEST, SUMS, read_bundle, write_bundle, write_manifest
    from protoserve.graph_signature import OUTPUT_NAMES, OUTPUTS_OF_FORMAT_2

    manifest = bundle.manifest
    prototypes = manifest.prototypes
    if not usual:
        prototypes = [record.model_copy(update={"usual": None, "weight": 0.0}) for record in prototypes]
    changed = {
        "format": 1,
        "graph": manifest.graph.model_copy(update={"centred": False}),
        "prototypes": prototypes,
        "prior": manifest.prior if usual else {},
        "weights": manifest.weights if weights else None,
    }
    with write_bundle(directory) as draft:
        shutil.copytree(bundle.directory, draft, dirs_exist_ok=True)
        for name in (MANIFEST, SUMS):
            (draft / name).unlink()
        model = onnx.load(str(draft / "model.onnx"))
        kept = [output for output in model.graph.output if output.name not in OUTPUTS_OF_FORMAT_2]
        assert len(kept) == len(OUTPUT_NAMES) - len(OUTPUTS_OF_FORMAT_2)
        del model.graph.output[:]
        model.graph.output.extend(kept)
        onnx.save(model, str(draft / "model.onnx"))
        write_manifest(draft, lambda version: manifest.model_copy(update={**changed, "version": version}))
    return read_bundle(directory)


class RunOptions(TypedDict, total=False):
    """The options of `make_run`."""

    kind: Kind
    leaves: tuple[str, ...]
    similarity: SimilarityForm
    seed: int
    stride: int
    latent: Latent
    smoothing: int
    tile: int | None
    tile_step: int | None
    receptive_field: int | None
    hidden: int | None
    zero: float | None


class RunFactory(Protocol):
    """`run(seed=1)`: the folder of a random run; `name` is the folder's name. Tests must not change it."""

    def __call__(self, name: str = "tiny", **options: Unpack[RunOptions]) -> Path: ...


class BundleFactory(Protocol):
    """`bundle(seed=1)`: the folder of that run's bundle. Tests must not change it: they copy it first.

    `targets` are those of the export, `edge` its options for hosts other than the service. With `data=True` the run has
    a data set, which the targets of less precision than float32 need.
    """

    def __call__(
        self,
        name: str = "tiny",
        targets: tuple[str, ...] = ("onnx",),
        *,
        edge: EdgeOptions | None = None,
        data: bool = False,
        **options: Unpack[RunOptions],
    ) -> Path: ...


@dataclass(frozen=True)
class Shared:
    """A folder in which every process of one test session makes each thing once."""

    root: Path

    def folder(self, name: str, options: object, make: Callable[[Path], object]) -> Path:
        """The folder `name` that `make` fills; equal options give the same folder, in every process."""
        directory = self.root / hashlib.sha256(repr(options).encode()).hexdigest()[:16]
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "lock"):
            if not (directory / "complete").exists():
                # An earlier attempt may have failed halfway.
                shutil.rmtree(directory / name, ignore_errors=True)
                make(directory / name)
                (directory / "complete").touch()
        return directory / name


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The session's folder, which the workers of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return Shared((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared")


def run_factory(shared: Shared) -> RunFactory:
    """Makes each run once a session."""

    def run(name: str = "tiny", **options: Unpack[RunOptions]) -> Path:
        return shared.folder(name, ("run", name, sorted(options.items())), lambda folder: make_run(folder, **options))

    return run


def learned_run(shared: Shared, name: str = "tiny", **options: Unpack[RunOptions]) -> tuple[Path, Path]:
    """(run, data): a run like `run(...)`, and a data set that it says to have learned from."""

    def make(folder: Path) -> None:
        write_data(make_run(folder / "run", **options), folder / "data")

    folder = shared.folder(name, ("learned", name, sorted(options.items())), make)
    return folder / "run", folder / "data"


def bundle_factory(shared: Shared) -> BundleFactory:
    """Exports each bundle once a session."""

    def bundle(
        name: str = "tiny",
        targets: tuple[str, ...] = ("onnx",),
        *,
        edge: EdgeOptions | None = None,
        data: bool = False,
        **options: Unpack[RunOptions],
    ) -> Path:
        from export.bundling import export_bundle
        from protoserve.run.folder import open_run

        if data:
            run, pictures = learned_run(shared, **options)
        else:
            run, pictures = run_factory(shared)(**options), None

        def make(folder: Path) -> None:
            export_bundle(open_run(run), folder, targets, options=edge, data=pictures)

        return shared.folder(name, ("bundle", name, targets, edge, data, sorted(options.items())), make)

    return bundle
