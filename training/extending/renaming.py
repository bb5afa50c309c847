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
from protoserve.run.records import AnalysedNode
from protoserve.taxonomy import Taxonomy

# Files that a run's figures and checkpoint would have to be made anew for; they hold the old names.
_LEFT = ("checkpoint.pt", "report.html", "confusion.png", "cache", "tensorboard")


def write_renamed_run(run: Run, directory: Path, taxonomy: Taxonomy, provenance: Provenance) -> None:
    """Copy a run into an empty folder, with the names of `taxonomy`, which has the same shape."""
    network, description, sources = load_network(run.model)
    before = Taxonomy.from_dict(description.taxonomy)
    names = dict(zip(before.names, taxonomy.names, strict=True)) | {"": ""}
    for entry in sorted(run.directory.iterdir()):
        if entry.name in _LEFT or entry.name.startswith("."):
            continue
        if entry.is_dir():
            shutil.copytree(entry, directory / entry.name)
        elif entry.name != run.model.name:
            shutil.copyfile(entry, directory / entry.name)
    metrics, analysis, confusion = run.metrics().model_dump(), run.analysis(), run.confusion()
    _write(directory / "metrics.json", _renamed_metrics(metrics, names), indent=1)
    if confusion is not None:
        tables = {split: _renamed(table, names) for split, table in confusion.model_dump().items()}
        _write(directory / "confusion.json", tables)
    if analysis is not None:
        prototypes = [
            prototype.model_copy(
                update={
                    "child": names[prototype.child],
                    "parent": names[prototype.parent],
                    "patches": [
                        patch.model_copy(update={"leaf": names.get(patch.leaf, patch.leaf)})
                        for patch in prototype.patches
                    ],
                }
            )
            for prototype in analysis.prototypes
        ]
        nodes = [AnalysedNode(name="/".join(path), label=path[-1]) for path in taxonomy.nodes]
        renamed = analysis.model_copy(update={"nodes": nodes, "prototypes": prototypes})
        _write(directory / "analysis.json", renamed.model_dump())
    _write(directory / "provenance.json", provenance.model_dump(), indent=1)
    # It is written last, because it marks the run as finished.
    changed = description.model_copy(update={"taxonomy": taxonomy.to_dict()})
    save_network(directory / run.model.name, network, changed, sources)


def _renamed_metrics(metrics: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The metrics with the parents' new names."""
    for split in ("selection", "validation", "test"):
        if "siblings" in metrics.get(split, {}):
            metrics[split]["siblings"] = _renamed(metrics[split]["siblings"], names)
    for record, tables in (("calibration", ("temperature", "images")), ("novelty", ("thresholds", "images"))):
        for table in tables:
            if table in (metrics.get(record) or {}):
                metrics[record][table] = _renamed(metrics[record][table], names)
    if "pooled" in (metrics.get("novelty") or {}):
        metrics["novelty"]["pooled"] = [names.get(name, name) for name in metrics["novelty"]["pooled"]]
    return metrics


def _renamed(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in table.items()}


def _write(file: Path, content: dict[str, Any], indent: int | None = None) -> None:
    write_text(file, json.dumps(content, indent=indent) + "\n")
