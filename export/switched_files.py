"""The files of a bundle with prototypes switched off, made from the bundle alone.

ONNX files of the full graph are changed directly (`export.targets.onnx_switch`). Formats that are converted from ONNX
are converted again. All others need the network: a routed graph has no output that all evidence passes through, and
PyTorch's formats are frozen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from export.curation_gate import check_switched
from export.host_manifest import named_manifest
from export.parity import BATCHES
from export.records import TargetReport, read_parity, write_parity
from export.sources import EdgeOptions, file_metadata
from export.targets import onnx_files, openvino_files, triton
from export.targets.onnx_switch import switch_off
from export.targets.table import target_named
from export.targets.web import GRAPH, SIDECAR, web_document
from protoserve.bundle.folder import MANIFEST, Bundle
from protoserve.bundle.manifest import Manifest
from protoserve.errors import InputError

# Changed in place, and converted from one of these with the same options.
_CHANGED: Final = ("onnx", "onnx-edge", "onnx-fp16", "onnx-int8", "triton", "web")
_CONVERTED: Final = ("ort", "openvino")
_SOURCES: Final = ("onnx", "onnx-edge", "web")


def check_files(bundle: Bundle) -> None:
    """Raise InputError, which names the target, for a bundle with a file that can't be made without the network."""
    manifest = bundle.manifest
    if not manifest.graph.centred:
        raise InputError(
            f"{bundle.directory}: its graph is of an older version, whose evidence the host puts in order; give --run "
            "RUN, the run that it was exported from"
        )
    options = {target: options_of(target, report) for target, report in read_parity(bundle.directory).items()}
    for target in manifest.files:
        sources = [name for name in _SOURCES if name in manifest.files and options[name] == options[target]]
        if target in _CHANGED or (target in _CONVERTED and sources):
            continue
        raise InputError(
            f"{bundle.directory}: its target {target} can't be changed without the network; give --run RUN, the run "
            f"that it was exported from, or --drop {target} to leave it out of the new bundle"
        )


def options_of(target: str, report: TargetReport) -> EdgeOptions:
    """Return the options that a target was exported with, from its parity report."""
    if target == "onnx":
        return EdgeOptions()
    sizes = tuple(report.batches)
    if report.resize is not None:
        return EdgeOptions(batch=1 if target_named(target).planned else None, resize=True)
    return EdgeOptions(batch=None if sizes == BATCHES else sizes[0])


def write_switched(
    bundle: Bundle, draft: Path, manifest: Manifest, off: Collection[int], report: Callable[[str], None]
) -> None:
    """Write the files of `manifest`, in which exactly `off` are off, and the parity report into a `draft`.

    The draft holds a copy of the bundle's folder. Raises InputError as `check_files` does, and ParityError as
    `check_switched` does.
    """
    check_files(bundle)
    reports = read_parity(bundle.directory)
    graphs: dict[EdgeOptions, Path] = {}
    found: dict[str, TargetReport] = {}
    for target in sorted(manifest.files, key=lambda name: name in _CONVERTED):
        row, options = target_named(target), options_of(target, reports[target])
        file = draft / row.file
        metadata = file_metadata(manifest, bundle.directory / MANIFEST, target, row.precision.name, options)
        report(f"writing {row.file}")
        if target in _CHANGED:
            graph = file.with_name(GRAPH) if target == "web" else file
            change_file(graph, bundle, off, None if target == "web" else metadata)
            if target == "web":
                document = web_document(named_manifest(manifest, bundle.directory / MANIFEST), metadata["options"])
                file.with_name(SIDECAR).write_text(document, encoding="utf-8")
            if target == "triton":
                triton.write_beside(file, metadata)
            if target in _SOURCES:
                graphs.setdefault(options, graph)
        else:
            _convert(graphs[options], file, target, metadata)
        report(f"comparing {row.file} with the file that it was made from")
        runtimes = row.run(bundle.directory / row.file), row.run(file)
        found[target] = check_switched(bundle, *runtimes, off, reports[target])
    write_parity(draft, {target: found[target] for target in manifest.files})


def change_file(file: Path, bundle: Bundle, off: Collection[int], metadata: dict[str, str] | None = None) -> None:
    """Switch exactly these prototypes off in a copy of one of the bundle's ONNX files, in place.

    None as `metadata` keeps the file's own.
    """
    import onnx

    model: Any = onnx.load(str(file))
    usual = [record.usual or 0.0 for record in bundle.prototypes]
    switch_off(model, off, np.array(usual, dtype=np.float32))
    if metadata is not None:
        onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(file))


def _convert(source: Path, file: Path, target: str, metadata: dict[str, str]) -> None:
    import onnx

    with TemporaryDirectory() as folder:
        whole = Path(folder) / "model.onnx"
        shutil.copyfile(source, whole)
        model = onnx.load(str(whole))
        # OpenVINO would keep the ONNX file's metadata a second time.
        onnx.helper.set_model_props(model, {} if target == "openvino" else metadata)
        onnx.save_model(model, str(whole))
        if target == "ort":
            onnx_files.write_ort(whole, file)
        else:
            openvino_files.write_openvino(whole, file, metadata)
