"""From a run to a bundle: write the targets, pass the parity gate in each runtime, then the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.accuracy import held_back, judge_target, pictures
from export.graph import ExplainedGraph
from export.parity import BATCHES, FLOAT32, INT8, check
from export.resizing import check_fitted
from export.sources import EdgeOptions, Graphs, Source, file_metadata, write_graphs
from export.targets.table import TARGETS, Target, target_named
from protoserve.bundle.folder import Bundle, read_bundle, write_bundle, write_manifest
from protoserve.bundle.manifest import FORMAT, GraphRecord, Manifest, PrototypeRecord
from protoserve.errors import InputError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import ExplainedNetwork, NetworkDescription, PrototypeSource, load_network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import parent_names
from protoserve.run.folder import Run
from protoserve.run.records import ExportRecord, Metrics
from protoserve.taxonomy import competing_groups

TOP_K = 10
WEIGHTS = "weights.npy"


def export_bundle(
    run: Run,
    directory: Path,
    targets: tuple[str, ...] = ("onnx",),
    *,
    name: str | None = None,
    data: Path | None = None,
    options: EdgeOptions | None = None,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Export a finished run into a bundle at `directory`; `report` is told each step.

    `data` is the data set of the run, for targets of less precision than float32; `options` hold for all targets but
    `onnx`, which the service runs; `size` (height, width) is another input size than that of training.

    Raises InputError for an unknown target, a run without prototypes, options that don't fit or a place that is taken,
    and ParityError when a target's answers differ from the network's; then no bundle is written.
    """
    chosen = {target: target_named(target) for target in targets}
    options = options or EdgeOptions()
    _check_options(chosen, data, options)
    network, description, sources = load_network(run.model)
    if isinstance(network, LinearNetwork):
        raise InputError(f"{run.directory}: a linear head has no evidence to serve; train with prototypes to export")
    if description.kind != "hierarchical" and (routed := [name for name, row in chosen.items() if row.routed]):
        raise InputError(
            f"--to {routed[0]}: {run.directory} is of kind {description.kind}, where all leaves compete at once; a "
            "routed graph needs a hierarchical one"
        )
    if sources is None:
        raise InputError(f"{run.directory}: the prototypes are not projected yet; finish the run with --resume")
    for number in range(len(sources)):
        if not run.picture(number).is_file():
            raise InputError(f"{run.picture(number)}: the picture of prototype {number} is missing; train again")
    samples = run.samples()
    if size is not None:
        if description.kind == "autoencoder":
            raise InputError("--image-size: an autoencoder's code is of one picture size; train another")
        rule = description.input.model_copy(update={"height": size[0], "width": size[1]})
        description = description.model_copy(update={"input": rule})
        samples = _resized(samples, size)
    rule = description.input
    top_k = min(TOP_K, network.head.top_k_limit)
    graph = ExplainedGraph(network, top_k, torch.from_numpy(samples[:2])).eval()
    manifest = _manifest(
        network, description, sources, run, directory.name if name is None else name, targets, top_k, resized=bool(size)
    )
    held = None
    if any(target.precision is not FLOAT32 for target in chosen.values()) and data is not None:
        report(f"reading {data}")
        held = held_back(run, data, network.head.taxonomy)

    with write_bundle(directory, overwrite=overwrite) as draft, TemporaryDirectory() as folder:
        parity: dict[str, Any] = {}
        graphs: dict[EdgeOptions, Graphs] = {}
        np.save(draft / WEIGHTS, _weights(network.head), allow_pickle=False)
        (draft / "prototypes").mkdir()
        for record in manifest("").prototypes:
            shutil.copyfile(run.picture(record.id), draft / record.picture)
        for target, row in chosen.items():
            report(f"writing {row.file}")
            # The service's own file takes any batch at model size, whatever the others are made for.
            taken = EdgeOptions() if target == "onnx" else replace(options, resize=options.resize or row.resizes)
            if row.planned:
                taken = replace(taken, batch=taken.batch or 1)
            if taken not in graphs:
                place = Path(folder) / str(len(graphs))
                place.mkdir()
                graphs[taken] = write_graphs(graph, rule, samples, taken, place)
            source = Source(
                graphs[taken],
                metadata=file_metadata(manifest(""), run.model, target, row.precision.name, taken),
                calibration=pictures(held.calibration, rule) if held and row.precision is INT8 else None,
                pictures=draft / "prototypes",
                report=report,
            )
            file = draft / row.file
            row.write(source, file)
            report(f"comparing {row.file} with the network on {len(samples)} pictures")
            runtime = row.run(file)
            if taken.resize:
                prefix = graphs[taken].prefix
                fitter = row.fitter(prefix) if row.fitter is not None and prefix is not None else None
                parity[target] = check_fitted(
                    network, top_k, runtime, rule, samples, precision=row.precision, fitter=fitter, routed=row.routed
                )
            else:
                batches = BATCHES if taken.batch is None else (taken.batch,)
                parity[target] = check(
                    network, top_k, runtime, samples, precision=row.precision, batches=batches, routed=row.routed
                )
            if row.precision is not FLOAT32 and held is not None:
                report(f"comparing {row.file} with the network on {len(held.validation)} validation pictures")
                parity[target]["validation"] = judge_target(
                    network, top_k, runtime, held.validation, rule, taken, row.precision
                )
        (draft / "parity.json").write_text(json.dumps(parity, indent=1) + "\n", encoding="utf-8")
        write_manifest(draft, manifest)
    return read_bundle(directory)


def _check_options(chosen: Mapping[str, Target], data: Path | None, options: EdgeOptions) -> None:
    """Raise InputError for options and targets that don't fit each other, before anything is done."""
    if "onnx" not in chosen:
        raise InputError(f"--to {','.join(chosen)}: a bundle always holds 'onnx', which the service runs; add it")
    for name, target in chosen.items():
        if target.precision is not FLOAT32 and data is None:
            raise InputError(f"the target {name} is compared on pictures of the run's data set; add --data DIR")
        if target.planned and options.resize:
            raise InputError(
                f"--resize-in-graph: {name} plans its memory for the largest picture that it may be given; write it "
                "without this option"
            )
    if options.batch is not None and options.resize:
        raise InputError("--fixed-batch and --resize-in-graph: pictures of any size come one by one; leave one out")
    if options != EdgeOptions() and set(chosen) == {"onnx"}:
        raise InputError("--fixed-batch and --resize-in-graph leave the service's graph alone; add --to onnx,onnx-edge")


def _resized(samples: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The run's sample pictures at another size."""
    rule = InputRule(height=size[0], width=size[1], resize="stretch")
    return np.stack([fit(decode(sample), rule).array for sample in samples])


def _manifest(
    network: ExplainedNetwork,
    description: NetworkDescription,
    sources: list[PrototypeSource],
    run: Run,
    name: str,
    targets: tuple[str, ...],
    top_k: int,
    *,
    resized: bool,
) -> Callable[[str], Manifest]:
    head = network.head
    rule = description.input
    with torch.inference_mode():
        blank = torch.zeros((1, rule.height, rule.width, 3), dtype=torch.uint8)
        rows, columns = network.latent(network.features(blank)).shape[2:]
    taxonomy = head.taxonomy
    weight = head.effective_weight().detach()
    records = []
    for number, (child, source) in enumerate(zip(description.prototype_child, sources, strict=True)):
        group, slot = int(head.grouping.prototype_group[number]), int(head.grouping.prototype_slot[number])
        # Without a hierarchy of heads all leaves compete at the root.
        parent = int(taxonomy.parent[child]) if description.kind == "hierarchical" else -1
        records.append(
            PrototypeRecord(
                id=number,
                parent="" if parent < 0 else taxonomy.names[parent],
                child=taxonomy.names[child],
                source_image=source.image,
                source_box=source.box,
                source_cell=divmod(source.cell, source.columns),
                weight=float(weight[group, int(head.grouping.node_member[child]), slot]),
                picture=f"prototypes/{number:04d}.webp",
            )
        )
    versions = library_versions("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "openvino")
    provenance = run.provenance().model_copy(update={"export": ExportRecord(versions=versions)})
    # What was measured at the training's picture size says nothing of another one, and thresholds do not carry over.
    metrics = Metrics() if resized else run.metrics()
    parents = parent_names(competing_groups(taxonomy, head.kind), taxonomy)
    temperature = dict(zip(parents, head.temperature.tolist(), strict=True))

    def build(content_version: str) -> Manifest:
        return Manifest(
            format=FORMAT,
            name=name,
            version=content_version,
            kind=description.kind,
            taxonomy=taxonomy.to_dict(),
            input=description.input,
            graph=GraphRecord(
                rows=rows,
                columns=columns,
                prototypes=len(records),
                top_k=top_k,
                similarity=description.similarity,
                epsilon=description.epsilon,
                zero=description.zero,
                smoothing=description.smoothing,
            ),
            files={target: TARGETS[target].file for target in targets},
            prototypes=records,
            weights=WEIGHTS,
            temperature=temperature,
            novelty=None if metrics.novelty is None else metrics.novelty.record(),
            metrics=metrics,
            provenance=provenance,
        )

    return build


def _weights(head: PrototypeHead) -> NDArray[np.float32]:
    """Every prototype's last-layer weights for all members of its group, one prototype after the other."""
    present = head.grouping.member_node < len(head.taxonomy.nodes)
    weights = head.effective_weight().detach()[head.grouping.prototype_group, :, head.grouping.prototype_slot]  # [P, M]
    return np.asarray(weights[present[head.grouping.prototype_group]].numpy(), dtype=np.float32)


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
