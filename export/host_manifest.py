"""The manifest as the files of a bundle hold it: what a host needs to prepare pictures and to name answers, no more."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from protoserve.bundle.manifest import Manifest
from protoserve.taxonomy import Taxonomy

# What only the bundle's folder has a use for.
_OF_THE_FOLDER: Final = frozenset(
    {"files", "samples", "weights", "lists", "truth", "promise", "metrics", "provenance", "prototypes"}
)


def named_manifest(manifest: Manifest, origin: Path) -> Manifest:
    """Return the manifest with the version that its files state: the hash of the file `origin` (the run's network, or
    the manifest of the bundle that a curated one was made from) and of the manifest.

    A bundle's own version is the hash of all its files, so no file can contain it.
    """
    digest = hashlib.sha256(origin.read_bytes())
    digest.update(manifest.model_dump_json().encode())
    return manifest.model_copy(update={"version": f"sha256:{digest.hexdigest()}"})


def host_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return the part of a manifest that hosts need, to be written as JSON.

    Its keys are the manifest's own, but `prototypes` are columns: each maps to one value per prototype, in their order.
    `child` is the node's number among the graph's nodes. Numbers have the digits of float32.
    """
    document: dict[str, Any] = manifest.model_dump(mode="json", exclude=set(_OF_THE_FOLDER))
    number = {name: index for index, name in enumerate(Taxonomy.from_dict(manifest.taxonomy).names)}
    records = manifest.prototypes
    document["prototypes"] = {
        "child": [number[record.child] for record in records],
        "source_image": [record.source_image for record in records],
        "source_box": [list(record.source_box) for record in records],
        "weight": [_rounded(record.weight) for record in records],
        "usual": [None if record.usual is None else _rounded(record.usual) for record in records],
    }
    document["prior"] = {name: _rounded(value) for name, value in manifest.prior.items()}
    return document


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
