"""Copies of a bundle that pass for another model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path


def rename_bundle(bundle: Path, copy: Path, name: str | None = None) -> Path:
    """Copy a bundle under another name (by default the folder's), with a version and sums that fit."""
    name = name or copy.name
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"name": name, "version": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    digest = hashlib.sha256((copy / "manifest.json").read_bytes()).hexdigest()
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    sums = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in lines]
    (copy / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return copy
