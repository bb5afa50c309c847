"""From a run to a bundle: write the targets, pass the parity gate in each runtime, then the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import OUTPUTS, ExplainedGraph, write_onnx, write_torchscript
from export.parity import Runtime, check
from protoserve.bundle import FORMAT, Bundle, GraphRecord, Manifest, read_bundle, write_bundle, write_manifest
from protoserve.errors import InputError, nearest
from protoserve.networks.checkpoint import ExplainedNetwork, NetworkDescription, PrototypeSource, load_network
from protoserve.networks.head import PrototypeHead, groups_of
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import parent_names
from protoserve.run import Run, novelty_record
from protoserve.schema import PrototypeRecord

TOP_K = 10
WEIGHTS = "weights.npy"
FILES = {"onnx": "model.onnx", "torchscript": "model.torchscript"}


def export_bundle(
    run: Run,
    directory: Path,
    targets: tuple[str, ...] = ("onnx",),
    *,
    name: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Export a finished run into a bundle at `directory`; `report` is told each step.

    Raises InputError for an unknown target, a run without prototypes or a place that is taken, and ParityError
    when a target's answers differ from the network's; then no bundle is written.
    """
    for target in targets:
        if target not in FILES:
            raise InputError(f"no target {target!r}{nearest(target, FILES)}; --to takes {', '.join(FILES)}")
    if "onnx" not in targets:
        raise InputError(f"--to {','.join(targets)}: a bundle always holds 'onnx', which the service runs; add it")
    network, description, sources = load_network(run.model)
    if isinstance(network, LinearNetwork):
        raise InputError(f"{run.directory}: a linear head has no evidence to serve; train with prototypes to export")
    if sources is None:
        raise InputError(f"{run.directory}: the prototypes are not projected yet; finish the run with --resume")
    for number in range(len(sources)):
        if not run.picture(number).is_file():
            raise InputError(f"{run.picture(number)}: the picture of prototype {number} is missing; train again")
    samples = run.samples()
    top_k = min(TOP_K, network.head.top_k_limit)
    graph = ExplainedGraph(network, top_k).eval()
    example = torch.from_numpy(samples[:2])
    manifest = _manifest(network, description, sources, run, directory.name if name is None else name, targets, top_k)
    metadata = {"protoserve": manifest("").model_dump_json()}

    with write_bundle(directory, overwrite=overwrite) as draft:
        parity: dict[str, Any] = {}
        for target in targets:
            report(f"writing {FILES[target]}")
            file = draft / FILES[target]
            if target == "onnx":
                write_onnx(graph, example, file, metadata)
            else:
                write_torchscript(graph, example, file, metadata)
            report(f"comparing {FILES[target]} with the network on {len(samples)} pictures")
            parity[target] = check(network, top_k, RUNTIMES[target](file), samples)
        (draft / "parity.json").write_text(json.dumps(parity, indent=1) + "\n", encoding="utf-8")
        np.save(draft / WEIGHTS, _weights(network.head), allow_pickle=False)
        (draft / "prototypes").mkdir()
        for record in manifest("").prototypes:
            shutil.copyfile(run.picture(record.id), draft / record.picture)
        write_manifest(draft, manifest)
    return read_bundle(directory)


def _manifest(
    network: ExplainedNetwork,
    description: NetworkDescription,
    sources: list[PrototypeSource],
    run: Run,
    name: str,
    targets: tuple[str, ...],
    top_k: int,
) -> Callable[[str], Manifest]:
    head = network.head
    taxonomy = head.taxonomy
    weight = head.effective_weight().detach()
    records = []
    for number, (child, source) in enumerate(zip(description.prototype_child, sources, strict=True)):
        group, slot = int(head.prototype_group[number]), int(head.prototype_slot[number])
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
                weight=float(weight[group, int(head.node_member[child]), slot]),
                picture=f"prototypes/{number:04d}.webp",
            )
        )
    provenance = run.read_json("provenance.json")
    provenance["export"] = {
        "versions": library_versions("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu")
    }
    metrics = run.read_json("metrics.json")
    parents = parent_names(groups_of(taxonomy, head.kind), taxonomy)
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
                rows=sources[0].rows,
                columns=sources[0].columns,
                prototypes=len(records),
                top_k=top_k,
                similarity=description.similarity,
                epsilon=description.epsilon,
                zero=description.zero,
                span=description.smoothing,
            ),
            files={target: FILES[target] for target in targets},
            prototypes=records,
            weights=WEIGHTS,
            temperature=temperature,
            novelty=novelty_record(metrics),
            metrics=metrics,
            provenance=provenance,
        )

    return build


def _weights(head: PrototypeHead) -> NDArray[np.float32]:
    """Every prototype's last-layer weights for all members of its group, one prototype after the other."""
    present = head.member_node < len(head.taxonomy.nodes)
    weights = head.effective_weight().detach()[head.prototype_group, :, head.prototype_slot]  # [P, M]
    return np.asarray(weights[present[head.prototype_group]].numpy(), dtype=np.float32)


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def onnx_runtime(file: Path) -> Runtime:
    """An ONNX file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": pictures}), strict=True))

    return run


def torchscript_runtime(file: Path) -> Runtime:
    """A TorchScript file in libtorch on the CPU."""
    import warnings

    with warnings.catch_warnings():
        # torch marks its own TorchScript calls as deprecated; the target stays.
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(pictures))
        return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}

    return run


RUNTIMES: dict[str, Callable[[Path], Runtime]] = {"onnx": onnx_runtime, "torchscript": torchscript_runtime}
