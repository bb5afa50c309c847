"""The output of the command `export`: the table of targets, a summary of each file, and the next commands."""

from __future__ import annotations

from pathlib import Path

from rich.table import Column, Table

from export.records import TargetReport
from export.targets import triton
from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import RoutingRecord


def listing() -> Table:
    """Make the table of targets, followed by formats that are not available and the reasons."""
    # A file's name is copied from here, so it is never cut.
    file = Column("file", min_width=max(len(target.file) for target in TARGETS.values()))
    table = Table("target", file, "runs in", "precision", "labels", "checked before publishing")
    for name, target in TARGETS.items():
        table.add_row(name, target.file, target.runtime, target.precision.name, target.metadata, target.checked)
    for name, reason in ABSENT.items():
        table.add_row(name, "-", "-", "-", "-", reason)
    return table


def summary(bundle: Bundle, target: str, report: TargetReport) -> str:
    """Describe a target in one line: its file, its size in megabytes, and its agreement with the network."""
    file = bundle.file(target)
    size = sum(part.stat().st_size for part in target_parts(file)) / 1e6
    worst = max(value for batch in report.batches.values() for value in batch.worst_difference.values())
    certain = [batch.certain for batch in report.batches.values() if batch.certain is not None]
    line = f"{bundle.manifest.files[target]:<20}{size:7.1f} MB   worst difference {worst:.1e}"
    if certain:
        line += f"   certain of {100 * min(certain):.0f} % of the sample pictures"
    if (validation := report.validation) is not None:
        loss = max(validation.loss_points.values())
        kept = validation.first_evidence_same if validation.evidence_kept is None else validation.evidence_kept
        least = 100 * min(kept.values(), default=1.0)
        line += f"   loses at most {loss:.2f} points of accuracy, keeps the evidence of at least {least:.1f} %"
    return line


def routing_note(record: RoutingRecord) -> str:
    """Say whether the routed graph was kept, and why."""
    share = f"a request takes {record.ratio:.2f} of the full graph's time with it, on this machine"
    if record.kept:
        return f"model.routed.onnx answers what it can: {share}; --to onnx leaves it out"
    return f"no model.routed.onnx: {share}; --to onnx,onnx-routed keeps it nevertheless"


def next_steps(bundle: Bundle, data: Path | None) -> list[str]:
    """Return commands to try the files of a bundle."""
    folder = bundle.directory
    lines = [f"protoserve predict {folder} PHOTO.jpg"]
    if data is not None:
        lines.append(f"protoserve validate {folder} --data {data} --split test")
    for target, name in bundle.manifest.files.items():
        step = TARGETS[target].next_step.replace("FILE", str(folder / name)).replace("FOLDER", str(folder))
        if step not in lines:
            lines.append(step)
    return lines


def target_parts(file: Path) -> list[Path]:
    """List a target's files: the whole folder of a web page or of a Triton repository, or the file and its companions
    (`.bin`, `.ort.config`)."""
    if file.name == "index.html":
        return [part for part in file.parent.rglob("*") if part.is_file()]
    if file.parts[-4:] == Path(triton.FILE).parts:
        return triton.repository_files(file)
    return [file, *(part for part in (file.with_suffix(".bin"), file.with_suffix(".ort.config")) if part.is_file())]


# Formats that are not available as targets, and the reasons.
ABSENT = {
    "coreml": "not available: its files run only on Apple's systems, so the parity gate can't check them",
}
