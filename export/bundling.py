"""Exports a run to a bundle: writes each target, compares it with the network in its runtime, writes the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from export import routing
from export.accuracy import JudgingData, judging_data, pictures
from export.graph import ExplainedGraph
from export.host_manifest import named_manifest
from export.judging import Judge
from export.network_answers import NetworkAnswers
from export.parity import BATCHES, FLOAT32, INT8, check
from export.records import TargetReport, write_parity
from export.resizing import check_fitted
from export.seen import measure_reach
from export.sources import EdgeOptions, Graphs, Source, file_metadata, write_graphs
from export.targets.converters import default_folder
from export.targets.table import ROUTED_WIDTH, TARGETS, Target, target_named
from protoserve.bundle.folder import Bundle, read_bundle, write_bundle, write_manifest
from protoserve.bundle.manifest import FORMAT, GraphRecord, Manifest, PrototypeRecord
from protoserve.errors import InputError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.names import visible
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import ExplainedNetwork, NetworkDescription, PrototypeSource, load_network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import parent_names
from protoserve.run.folder import Run
from protoserve.run.provenance import ExportRecord
from protoserve.run.records import Metrics
from protoserve.taxonomy import competing_groups

TOP_K = 10
WEIGHTS = "weights.npy"
CALIBRATION = "calibration"


def export_bundle(
    run: Run,
    directory: Path,
    targets: tuple[str, ...] = ("onnx",),
    *,
    name: str | None = None,
    data: Path | None = None,
    options: EdgeOptions | None = None,
    size: tuple[int, int] | None = None,
    tried: int = 0,
    routed_if_quicker: bool = False,
    converters: Path | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Export a finished run to a bundle at `directory`; calls `report` with a line of text before each step.

    With `routed_if_quicker`, also writes `onnx-routed` where a class tree is large enough to be routed, and keeps it if
    requests are quicker with it on this machine; the manifest's `routing` says so.

    `data` is the folder of the run's data set, which targets of less precision than float32 need. `options` apply to
    all targets except `onnx`, which the service runs. `size` is (height, width) in pixels, for an input size other than
    that of training. `tried` is how many of the run's sample pictures the bundle holds for people to try. `converters`
    is the folder of converters' environments (None: the user's).

    Raises InputError for an unknown target, a run without prototypes, options that exclude each other or an existing
    `directory` (unless `overwrite`), and ParityError if a target's outputs differ from the network's. In both cases it
    writes no bundle.
    """
    chosen = {target: target_named(target) for target in targets}
    options = options or EdgeOptions()
    _check_options(chosen, data, options)
    network, description, sources = load_network(run.model)
    if isinstance(network, LinearNetwork):
        raise InputError(f"{run.directory}: a linear head has no evidence to serve; train with prototypes, then export")
    if description.kind != "hierarchical" and (routed := [name for name, row in chosen.items() if row.routed]):
        raise InputError(
            f"--to {routed[0]}: {run.directory} is of kind {description.kind}, in which all leaves compete at once; "
            f"leave {routed[0]} out, or train a hierarchical model"
        )
    if sources is None:
        raise InputError(f"{run.directory}: its prototypes are not projected yet; finish the run with --resume")
    for prototype in range(len(sources)):
        if not run.picture(prototype).is_file():
            raise InputError(f"{run.picture(prototype)}: the picture of prototype {prototype} is missing; train again")
    samples = run.samples()
    if size is not None:
        if description.kind == "autoencoder":
            raise InputError("--image-size: an autoencoder takes only one input size; train one of the new size")
        rule = description.input.model_copy(update={"height": size[0], "width": size[1]})
        description = description.model_copy(update={"input": rule})
        samples = resized(samples, size)
        _check_size(network, description, samples)
    rule = description.input
    top_k = min(TOP_K, network.head.top_k_limit)
    manifest = _manifest(
        network,
        description,
        sources,
        run,
        visible(directory.name) if name is None else name,
        targets,
        top_k,
        samples,
        resized=bool(size),
        tried=tried,
    )
    judging = None
    if any(target.precision is not FLOAT32 for target in chosen.values()) and data is not None:
        report(f"reading {data}")
        judging = judging_data(run, data, network.head.taxonomy)

    applied = {target: _applied(target, row, options) for target, row in chosen.items()}
    tries_routing = routed_if_quicker and routing.TARGET not in chosen and routing.may_pay(network.head, ROUTED_WIDTH)
    if tries_routing:
        applied[routing.TARGET] = EdgeOptions()
    with write_bundle(directory, overwrite=overwrite) as draft:
        (draft / "prototypes").mkdir()
        for record in manifest("").prototypes:
            shutil.copyfile(run.picture(record.id), draft / record.picture)
        for sample, picture in zip(manifest("").samples, _spread(samples, tried), strict=True):
            (draft / sample).parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(draft / sample, optimize=True)
        if manifest("").promise is not None:
            shutil.copytree(run.calibration, draft / CALIBRATION)
        model = ExportedModel(network, rule, samples, top_k, run.model)
        reports = write_targets(draft, model, manifest, applied, judging, report, converters)
        if tries_routing:
            report(f"timing requests with {TARGETS[routing.TARGET].file} and without")
            manifest = routing.with_routing(draft, manifest, reports, samples)
        write_parity(draft, reports)
        write_manifest(draft, manifest)
    return read_bundle(directory)


@dataclass(frozen=True)
class ExportedModel:
    """What targets are made of: a network, the `rule` of its input, `samples` uint8 [pictures, H, W, 3] at model size
    for the parity gate, the evidence per level, and the `checkpoint`, whose hash identifies the weights."""

    network: ExplainedNetwork
    rule: InputRule
    samples: NDArray[np.uint8]
    top_k: int
    checkpoint: Path


def write_model(
    draft: Path,
    model: ExportedModel,
    manifest: Callable[[str], Manifest],
    targets: Mapping[str, EdgeOptions],
    judging: JudgingData | None,
    report: Callable[[str], None],
) -> None:
    """Write what `write_targets` does, the parity report and the manifest."""
    write_parity(draft, write_targets(draft, model, manifest, targets, judging, report))
    write_manifest(draft, manifest)


def write_targets(
    draft: Path,
    model: ExportedModel,
    manifest: Callable[[str], Manifest],
    targets: Mapping[str, EdgeOptions],
    judging: JudgingData | None,
    report: Callable[[str], None],
    converters: Path | None = None,
) -> dict[str, TargetReport]:
    """Write the weights and each of the `targets` with its options into a draft that holds the pictures of the
    prototypes; returns the targets' parity reports.

    Raises ParityError if a target's outputs differ from the network's.
    """
    network, rule, samples, top_k = model.network, model.rule, model.samples, model.top_k
    graph = ExplainedGraph(network, top_k, torch.from_numpy(samples[:2])).eval()
    weights = head_weights(network.head)
    np.save(draft / WEIGHTS, weights, allow_pickle=False)
    judge = None if judging is None else Judge(network, top_k, judging.validation, rule)
    answers = NetworkAnswers(network, top_k)
    parity: dict[str, TargetReport] = {}
    graphs: dict[EdgeOptions, Graphs] = {}
    with TemporaryDirectory() as folder:
        for target, applied in targets.items():
            row = target_named(target)
            report(f"writing {row.file}")
            if applied not in graphs:
                drafts = Path(folder) / str(len(graphs))
                drafts.mkdir()
                graphs[applied] = write_graphs(graph, rule, samples, applied, drafts)
            source = Source(
                graphs[applied],
                manifest=named_manifest(manifest(""), model.checkpoint),
                metadata=file_metadata(manifest(""), model.checkpoint, target, row.precision.name, applied),
                calibration=pictures(judging.calibration, rule) if judging and row.precision is INT8 else None,
                pictures=draft / "prototypes",
                weights=weights,
                converters=converters or default_folder(),
                report=report,
            )
            file = draft / row.file
            row.write(source, file)
            report(f"comparing {row.file} with the network on {len(samples)} pictures")
            runtime = row.run(file)
            if applied.resize:
                prefix = graphs[applied].prefix
                fitter = row.fitter(prefix) if row.fitter is not None and prefix is not None else None
                parity[target] = check_fitted(
                    answers, runtime, rule, samples, precision=row.precision, fitter=fitter, routed=row.routed
                )
            else:
                batches = BATCHES if applied.batch is None else (applied.batch,)
                parity[target] = check(
                    answers, runtime, samples, precision=row.precision, batches=batches, routed=row.routed
                )
            if row.precision is not FLOAT32 and judge is not None:
                report(f"comparing {row.file} with the network on {len(judge.validation)} validation pictures")
                unoptimised = None if row.run_unoptimised is None else row.run_unoptimised(file)
                validation = judge.report(runtime, applied, row.precision, unoptimised)
                parity[target] = parity[target].model_copy(update={"validation": validation})
    return parity


def _applied(name: str, target: Target, options: EdgeOptions) -> EdgeOptions:
    """Return the options that apply to a target: not to the service's file, which takes any batch at model size."""
    applied = EdgeOptions() if name == "onnx" else replace(options, resize=options.resize or target.resizes)
    return replace(applied, batch=applied.batch or 1) if target.planned else applied


def _check_options(chosen: Mapping[str, Target], data: Path | None, options: EdgeOptions) -> None:
    """Raise InputError if options and targets exclude each other."""
    if "onnx" not in chosen:
        raise InputError(f"--to {','.join(chosen)}: a bundle always holds 'onnx', which the service runs; add onnx")
    for name, target in chosen.items():
        if target.precision is not FLOAT32 and data is None:
            raise InputError(f"--to {name}: its accuracy is checked on the run's own data set; add --data DIR")
        if target.planned and options.resize:
            raise InputError(
                f"--resize-in-graph: {name} fixes its memory for one picture size when it is written; leave out the "
                "option or the target"
            )
    if options.batch is not None and options.resize:
        raise InputError(
            "--fixed-batch and --resize-in-graph: a resizing graph takes one picture at a time; leave one out"
        )
    if options != EdgeOptions() and set(chosen) == {"onnx"}:
        raise InputError(
            "--fixed-batch and --resize-in-graph don't apply to onnx; add a target, as in --to onnx,onnx-edge"
        )


def _check_size(network: ExplainedNetwork, description: NetworkDescription, samples: NDArray[np.uint8]) -> None:
    """Raise InputError if the network can't take pictures of another size than those that it was trained with."""
    try:
        with torch.inference_mode():
            network.features(torch.from_numpy(samples[:1]))
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"--image-size: backbone {description.backbone!r} does not take pictures of {samples.shape[1]} × "
            f"{samples.shape[2]} pixels ({str(error).partition(chr(10))[0]}); leave the option out, or train with that "
            "size"
        ) from error


def resized(samples: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize the run's sample pictures uint8 [pictures, H, W, 3] to `size` (height, width)."""
    rule = InputRule(height=size[0], width=size[1], resize="stretch")
    return np.stack([fit(decode(sample), rule).array for sample in samples])


def _spread(samples: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Choose `count` of the run's sample pictures, spread over the first half of them, which are selection images.

    Raises InputError if there are fewer.
    """
    half = samples[: (len(samples) + 1) // 2]
    if count > len(half):
        raise InputError(f"--samples {count}: the run keeps {len(half)} pictures that could be tried; give fewer")
    return half[np.linspace(0, len(half) - 1, count).astype(np.int64)]


def _manifest(
    network: ExplainedNetwork,
    description: NetworkDescription,
    sources: list[PrototypeSource],
    run: Run,
    name: str,
    targets: tuple[str, ...],
    top_k: int,
    samples: NDArray[np.uint8],
    *,
    resized: bool,
    tried: int,
) -> Callable[[str], Manifest]:
    """Return a function that makes the manifest for a content version."""
    head = network.head
    rule = description.input
    with torch.inference_mode():
        blank = torch.zeros((1, rule.height, rule.width, 3), dtype=torch.uint8)
        rows, columns = network.latent(network.features(blank)).shape[2:]
    cells = network.cells(rows, columns)
    reach = None if cells.tile else measure_reach(network, samples)
    taxonomy = head.taxonomy
    weight, usual = head.centred_own_weight().tolist(), head.usual.tolist()
    measured = bool(head.usual.any())
    records = []
    for prototype, (child, source) in enumerate(zip(description.prototype_child, sources, strict=True)):
        # In a flat head all leaves compete at the root.
        parent = int(taxonomy.parent[child]) if description.kind == "hierarchical" else -1
        records.append(
            PrototypeRecord(
                id=prototype,
                parent="" if parent < 0 else taxonomy.names[parent],
                child=taxonomy.names[child],
                source_image=source.image,
                source_box=source.box,
                source_cell=divmod(source.cell, source.columns),
                weight=weight[prototype],
                usual=usual[prototype] if measured else None,
                picture=f"prototypes/{prototype:04d}.webp",
            )
        )
    versions = library_versions("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "openvino")
    provenance = run.provenance().model_copy(update={"export": ExportRecord(versions=versions)})
    # Scores and thresholds are valid only at the picture size of training.
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
                centred=True,
                smoothing=description.smoothing,
                tile=cells.tile,
                tile_step=cells.step,
                tile_start=cells.start,
                reach=reach,
            ),
            files={target: TARGETS[target].file for target in targets},
            prototypes=records,
            samples=[f"samples/{sample}.png" for sample in range(tried)],
            weights=WEIGHTS,
            prior=head_prior(head),
            temperature=temperature,
            novelty=None if metrics.novelty is None else metrics.novelty.record(),
            promise=None if metrics.promise is None else metrics.promise.record(CALIBRATION),
            metrics=metrics,
            provenance=provenance,
        )

    return build


def head_prior(head: PrototypeHead) -> dict[str, float]:
    """Map every node that competes with others to its prior."""
    competing = (head.grouping.node_group[:-1] < len(head.temperature)).tolist()
    priors = zip(head.taxonomy.names, head.prior().tolist(), competing, strict=True)
    return {name: value for name, value, competes in priors if competes}


def head_weights(head: PrototypeHead) -> NDArray[np.float32]:
    """Each prototype's last-layer weights, as trained, for all members of its group, in order: float32 [weights]."""
    present = head.grouping.member_node < len(head.taxonomy.nodes)
    weights = head.effective_weight().detach()[head.grouping.prototype_group, :, head.grouping.prototype_slot]  # [P, M]
    return np.asarray(weights[present[head.grouping.prototype_group]].numpy(), dtype=np.float32)


def library_versions(*packages: str) -> dict[str, str]:
    """Map those `packages` that are installed to their versions."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
