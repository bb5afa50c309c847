"""What the command says about targets: their table, what was written, and what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle


def listing() -> Table:
    """The table of targets, and of those that are none yet."""
    table = Table("target", "file", "runs in", "precision", "labels", "checked with, before publishing")
    for name, target in TARGETS.items():
        table.add_row(name, target.file, target.runtime, target.precision.name, target.metadata, target.checked)
    for name, reason in ABSENT.items():
        table.add_row(name, "-", "-", "-", "-", reason)
    return table


def summary(bundle: Bundle, target: str, report: dict[str, Any]) -> str:
    """One line about a written target: its file, its size, and how near it came to the network."""
    file = bundle.file(target)
    size = sum(part.stat().st_size for part in _parts(file)) / 1e6
    batches = [part for name, part in report.items() if name.startswith("batch_")]
    worst = max(value for batch in batches for value in batch["worst_difference"].values())
    line = f"{bundle.manifest.files[target]:<20}{size:7.1f} MB   worst difference {worst:.1e}"
    if "certain" in batches[0]:
        line += f"   certain of {100 * min(batch['certain'] for batch in batches):.0f} % of the sample pictures"
    if (validation := report.get("validation")) is not None:
        loss = max(validation["loss_points"].values())
        same = 100 * min(validation["first_evidence_same"].values(), default=1.0)
        line += f"   loses {loss:.2f} points at most, first evidence the same in {same:.1f} % at least"
    return line


def next_steps(bundle: Bundle, data: Path | None) -> list[str]:
    """The commands that try what was written."""
    folder = bundle.directory
    lines = [f"protoserve predict {folder} PHOTO.jpg"]
    if data is not None:
        lines.append(f"protoserve validate {folder} --data {data} --split test")
    for target, name in bundle.manifest.files.items():
        step = TARGETS[target].next_step.replace("FILE", str(folder / name)).replace("FOLDER", str(folder))
        if step not in lines:
            lines.append(step)
    return lines


def _parts(file: Path) -> list[Path]:
    """A target's files: a web page's whole folder, or the file and what lies beside it under its name."""
    if file.name == "index.html":
        return [part for part in file.parent.rglob("*") if part.is_file()]
    return [file, *(part for part in (file.with_suffix(".bin"), file.with_suffix(".ort.config")) if part.is_file())]


# Formats asked for that are no targets, and why.
ABSENT = {
    "litert": "not written: its converter needs typing-extensions below 4.13, which pydantic is above",
    "coreml": "not written: its files run on Apple's systems alone, so no gate here could pass them",
}
