"""Rename the classes of a finished run: every number stays bit for bit, and only names change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protoserve.files import write_text
from protoserve.networks.model_file import load_network, save_network
from protoserve.run.folder import Run
from protoserve.run.provenance import Provenance
from protoserve.taxonomy import Taxonomy

# Files that a run's figures and checkpoint would have to be made anew for; they hold the old names.
_LEFT = ("checkpoint.pt", "report.html", "confusion.png")


def write_renamed_run(run: Run, directory: Path, taxonomy: Taxonomy, provenance: Provenance) -> None:
    """Copy a run into an empty folder, with the names of `taxonomy`, which has the same shape."""
    network, description, sources = load_network(run.model)
    before = Taxonomy.from_dict(description.taxonomy)
    names = dict(zip(before.names, taxonomy.names, strict=True)) | {"": ""}
    for entry in sorted(run.directory.iterdir()):
        if entry.name in _LEFT or entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name in ("prototypes", "patches", "added"):
                shutil.copytree(entry, directory / entry.name)
        elif entry.name != run.model.name:
            shutil.copyfile(entry, directory / entry.name)
    metrics, analysis, confusion = run.metrics().model_dump(), run.analysis(), run.confusion()
    _write(directory / "metrics.json", _renamed_metrics(metrics, names), indent=1)
    if confusion is not None:
        content = {split: _renamed(tables, names) for split, tables in confusion.model_dump().items()}
        _write(directory / "confusion.json", content)
    if analysis is not None:
        content = analysis.model_dump()
        for node, path in zip(content["nodes"], taxonomy.nodes, strict=True):
            node |= {"name": "/".join(path), "label": path[-1]}
        for prototype in content["prototypes"]:
            prototype |= {"child": names[prototype["child"]], "parent": names[prototype["parent"]]}
            for patch in prototype["patches"]:
                patch["leaf"] = names.get(patch["leaf"], patch["leaf"])
        _write(directory / "analysis.json", content)
    _write(directory / "provenance.json", provenance.model_dump(), indent=1)
    # It is written last, because it marks the run as finished.
    changed = description.model_copy(update={"taxonomy": taxonomy.to_dict()})
    save_network(directory / run.model.name, network, changed, sources)


def _renamed_metrics(metrics: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The metrics with the parents' new names."""
    for split in ("selection", "validation", "test"):
        if "siblings" in metrics.get(split, {}):
            metrics[split]["siblings"] = _renamed(metrics[split]["siblings"], names)
    for record, tables in (("calibration", ("temperature", "images")), ("novelty", ("thresholds",))):
        for table in tables:
            if table in (metrics.get(record) or {}):
                metrics[record][table] = _renamed(metrics[record][table], names)
    return metrics


def _renamed(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in table.items()}


def _write(file: Path, content: dict[str, Any], indent: int | None = None) -> None:
    write_text(file, json.dumps(content, indent=indent) + "\n")
