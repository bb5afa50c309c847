"""The table of targets, and the line about a written one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from export.targets.listing import ABSENT, listing, next_steps, summary
from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle


def bundle(folder: Path, files: dict[str, str]) -> Bundle:
    """A folder with files of a million bytes, of which the lines read no more."""
    for name in files.values():
        (folder / name).write_bytes(bytes(1_000_000))
    manifest = SimpleNamespace(files=files)
    found = SimpleNamespace(directory=folder, manifest=manifest, file=lambda target: folder / files[target])
    return cast(Bundle, found)


def test_the_table_holds_every_target_and_every_absent_one() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(listing())
    text = captured.get()
    assert all(name in text for name in (*TARGETS, *ABSENT))


def test_a_summary_gives_the_worst_of_all_batches_and_the_least_of_the_shares(tmp_path: Path) -> None:
    report: dict[str, Any] = {
        "batch_1": {"worst_difference": {"logit": 1e-5, "similarity": 2e-4}, "certain": 0.5},
        "batch_3": {"worst_difference": {"logit": 3e-4}, "certain": 0.25},
        "validation": {"loss_points": {"level_1": 0.0, "leaf": 0.75}, "first_evidence_same": {"leaf": 0.96}},
    }
    line = summary(bundle(tmp_path, {"onnx-int8": "model.int8.onnx"}), "onnx-int8", report)
    assert "1.0 MB" in line
    assert "worst difference 3.0e-04" in line
    assert "certain of 25 %" in line
    assert "loses 0.75 points at most, first evidence the same in 96.0 % at least" in line


def test_next_steps_name_the_files_and_each_command_once(tmp_path: Path) -> None:
    lines = next_steps(bundle(tmp_path, {"onnx": "model.onnx", "onnx-edge": "model.edge.onnx"}), Path("data"))
    assert lines[0] == f"protoserve predict {tmp_path} PHOTO.jpg"
    assert f"protoserve validate {tmp_path} --data data --split test" in lines
    assert f"python examples/onnx_edge.py {tmp_path / 'model.edge.onnx'} PHOTO.jpg" in lines
    assert len(set(lines)) == len(lines)
