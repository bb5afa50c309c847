"""Measures usual similarities after training: for a finished run, or for a bundle whose graph is older than centring.

Training does this itself in its stage `centre`. Both ways go through `protoserve.similarity_statistics`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from export.accuracy import learned_images
from export.validating import fitted_batches
from protoserve.bundle.ensemble import ENSEMBLE
from protoserve.bundle.folder import MANIFEST, Bundle, read_bundle, rewrite_manifest
from protoserve.bundle.manifest import FORMAT
from protoserve.data.checking import broken_pictures, refuse_broken
from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.device import Device
from protoserve.errors import InputError, TaxonomyError, nearest
from protoserve.files import write_text
from protoserve.images.geometry import InputRule
from protoserve.inference.engine import Engine
from protoserve.inference.last_layers import LastLayers, read_last_layers
from protoserve.networks.device import torch_device
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import load_network, save_network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import NoveltyTable
from protoserve.run.folder import Run, open_run
from protoserve.run.records import SeparationRecord
from protoserve.similarity_statistics import SimilarityStatistics, SimilaritySums
from protoserve.taxonomy import Taxonomy

# Pictures of a batch.
BATCH = 16
Similarities: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Advance: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Centred:
    """The result of `centre`: how many prototypes tell their class apart, the number of `images` measured on, the new
    content `version` of a bundle (None for a run), the bundle's `older_files`, whose evidence keeps its order, and
    whether the images are those that it learned from (None where it does not say)."""

    separation: SeparationRecord
    images: int
    version: str | None = None
    older_files: tuple[str, ...] = ()
    same_images: bool | None = True


def centre(
    path: Path,
    data: Path,
    *,
    device: Device = "auto",
    advance: Advance = lambda done, total: None,
) -> Centred:
    """Measure the usual similarities of a finished run or of a bundle at `path`, and write them there.

    `data` is the data set that it learned from. Calls `advance(images in the batch, images in total)` after each batch.

    Raises InputError if `path` is neither or is an ensemble, for a run without prototypes, for another data set, and
    for a bundle whose own graph tells centred evidence; TaxonomyError if the data set has other classes.
    """
    if (path / ENSEMBLE).is_file():
        raise InputError(f"{path}: an ensemble; centre its members, then combine them again with 'protoserve ensemble'")
    if (path / MANIFEST).is_file():
        return centre_bundle(read_bundle(path), data, device=device, advance=advance)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give a finished run or a bundle")
    return centre_run(open_run(path), data, device=device, advance=advance)


def centre_run(
    run: Run, data: Path, *, device: Device = "auto", advance: Advance = lambda done, total: None
) -> Centred:
    """Measure on the run's fit images and write `model.pt`, and the separation in `metrics.json` and `analysis.json`.

    No weight and no probability changes. Raises as `centre` does.
    """
    network, description, sources = load_network(run.model)
    if isinstance(network, LinearNetwork):
        raise InputError(f"{run.directory}: a linear head has no prototypes to centre; give a run with prototypes")
    head = network.head
    compare_taxonomies(head.taxonomy, data, run.provenance().left_out, str(run.directory))
    fit, _ = learned_images(run, data, head.taxonomy)
    place = torch_device(device)
    network.to(place)

    @torch.inference_mode()
    def similarities(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        features = network.features(torch.from_numpy(pictures).to(place))
        return np.asarray(head(network.latent(features)).similarity.cpu().numpy())

    table = NoveltyTable.of(head.taxonomy, head.kind, head.grouping.prototype_child.tolist())
    statistics = measure(fit, table, similarities, description.input, advance)
    network.to("cpu")
    head.usual.copy_(torch.from_numpy(np.nan_to_num(statistics.usual)))
    _write_separation(run, statistics, head)
    # It is written last: only a run whose records are complete counts as centred.
    save_network(run.model, network, description, sources)
    return Centred(statistics.record(), len(fit))


def centre_bundle(
    bundle: Bundle, data: Path, *, device: Device = "auto", advance: Advance = lambda done, total: None
) -> Centred:
    """Measure with the bundle's graph on the train split, and write `usual` and `prior` into its manifest.

    The folder is replaced as a whole, with a new version and new checksums. The graph stays as it is; the engine
    computes the centred evidence from its similarities. Raises as `centre` does.
    """
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    if manifest.graph.centred:
        raise InputError(
            f"{bundle.directory}: its graph tells centred evidence itself; to measure anew, centre the run and export "
            "it again"
        )
    table = NoveltyTable.of(taxonomy, bundle.kind, [taxonomy.index[record.child] for record in manifest.prototypes])
    if read_last_layers(bundle, table) is None:
        raise InputError(
            f"{bundle.directory}: was exported without its last-layer weights, which centred evidence needs; export "
            "its run again"
        )
    compare_taxonomies(taxonomy, data, bundle.left_out, str(bundle.directory))
    train = read_split(data, "train", taxonomy, left_out=bundle.left_out, every_leaf=True)
    train = train.without(manifest.provenance.broken)
    refuse_broken(broken_pictures(train))
    engine = Engine(bundle, device=device)
    statistics = measure(train, table, lambda pictures: engine.run(pictures).similarity, bundle.input, advance)
    # An audit measured the evidence as it was before.
    written = rewrite_manifest(bundle, **centred_fields(bundle, table, statistics), truth=None)
    older = tuple(file for target, file in manifest.files.items() if target != "onnx")
    source = manifest.provenance.data
    same = None if source is None else source.fingerprint == train.fingerprint()
    return Centred(statistics.record(), len(train), written.version, older, same)


def remarks(path: Path, centred: Centred) -> list[str]:
    """Say what to do next, and what did not change."""
    lines = []
    if centred.same_images is False:
        lines.append(
            "note: these are not the images that the model learned from, so the usual similarities are those of other "
            "pictures"
        )
    if centred.version is None:
        lines += ["Next:", f"  protoserve export {path} --bundle BUNDLE"]
        return lines
    lines.append(f"version {centred.version[:19]}; predict and serve now tell evidence as more than usual")
    if centred.older_files:
        lines.append(
            f"note: evidence in {', '.join(centred.older_files)} keeps its own order until the run is exported again"
        )
    return lines


def measure(
    dataset: Dataset, table: NoveltyTable, similarities: Similarities, rule: InputRule, advance: Advance
) -> SimilarityStatistics:
    """Gather the statistics of `similarities` (uint8 [N, height, width, 3] → float32 [N, prototypes]) over a data
    set."""
    sums = SimilaritySums(dataset.taxonomy, table)
    for indices, pictures in fitted_batches(dataset, rule, BATCH):
        sums.add(similarities(pictures), dataset.leaves[indices.start : indices.stop])
        advance(len(indices), len(dataset))
    return sums.statistics()


def centred_fields(bundle: Bundle, table: NoveltyTable, statistics: SimilarityStatistics) -> dict[str, Any]:
    """Return the fields of the manifest that centring changes: the format, the prototypes with their usual similarities
    and centred weights, and the nodes' priors."""
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    usual = np.nan_to_num(statistics.usual).tolist()
    records = [
        record.model_copy(update={"usual": value}) for record, value in zip(manifest.prototypes, usual, strict=True)
    ]
    measured = Bundle(bundle.directory, manifest.model_copy(update={"prototypes": records}))
    layers = read_last_layers(measured, table)
    assert isinstance(layers, LastLayers) and layers.centred
    prior: dict[str, float] = {}
    for group, layer in zip(table.groups, layers.groups, strict=True):
        prior |= dict(zip((taxonomy.names[node] for node in group.children), layer.prior.tolist(), strict=True))
        for column, prototype in enumerate(layer.prototypes.tolist()):
            own = group.children.index(taxonomy.index[records[prototype].child])
            weight = float(layer.weight[own, column])
            records[prototype] = records[prototype].model_copy(update={"weight": weight})
    # Format 1 has no usual similarities, so an older version has to refuse the bundle.
    changed: dict[str, Any] = {"format": FORMAT, "prototypes": records}
    changed["prior"] = {name: prior[name] for name in taxonomy.names if name in prior}
    return changed


def compare_taxonomies(taxonomy: Taxonomy, data: Path, left_out: Collection[str], owner: str) -> None:
    """Raise TaxonomyError unless the data set has the leaves that the model `owner` knows, and those it left out."""
    given = set(_leaves(read_taxonomy(data)))
    known = set(_leaves(taxonomy))
    # A data set may also name the leaves that were left out of training.
    if unknown := sorted(given - known - set(left_out)):
        raise TaxonomyError(
            f"{data}: has the class {unknown[0]!r}{nearest(unknown[0], known)}, which {owner} does not know; give the "
            "data set that it learned from"
        )
    if missing := sorted(known - given):
        raise TaxonomyError(
            f"{data}: lacks the class {missing[0]!r}{nearest(missing[0], given)}, which {owner} knows; give the data "
            "set that it learned from"
        )


def _leaves(taxonomy: Taxonomy) -> list[str]:
    return [taxonomy.names[leaf] for leaf in taxonomy.leaves]


def _write_separation(run: Run, statistics: SimilarityStatistics, head: PrototypeHead) -> None:
    """Write how well each prototype tells its class apart into the run's records."""
    metrics = run.metrics().model_copy(update={"separation": statistics.record()})
    write_text(run.directory / "metrics.json", json.dumps(metrics.model_dump(), indent=1) + "\n")
    analysis = run.analysis()
    if analysis is None:
        return
    weight = head.centred_own_weight().tolist()
    prototypes = [
        record.model_copy(update={"separation": statistics.of_prototype(record.id), "weight": weight[record.id]})
        for record in analysis.prototypes
    ]
    changed = analysis.model_copy(update={"prototypes": prototypes})
    write_text(run.directory / "analysis.json", json.dumps(changed.model_dump()) + "\n")
