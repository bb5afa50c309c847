"""The table of targets, and the line about a written one."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from rich.console import Console

from export.records import AccuracyPair, BatchReport, TargetReport, Tolerance, ValidationReport, read_parity
from export.targets.listing import ABSENT, listing, next_steps, summary
from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle


def bundle(folder: Path, files: dict[str, str]) -> Bundle:
    """A bundle with files of a million bytes; the lines read only its files' names and sizes."""
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
    def batch(certain: float, **worst: float) -> BatchReport:
        return BatchReport(worst_difference=worst, agreement={}, near_ties={}, certain=certain)

    report = TargetReport(
        precision="int8",
        pictures=3,
        tolerance=Tolerance(),
        batches={1: batch(0.5, logit=1e-5, similarity=2e-4), 3: batch(0.25, logit=3e-4)},
        validation=ValidationReport(
            pictures=5,
            accuracy=AccuracyPair(network={"leaf": 0.9}, target={"leaf": 0.8925}),
            loss_points={"level_1": 0.0, "leaf": 0.75},
            first_evidence_same={"leaf": 0.91},
            evidence_kept={"leaf": 0.96},
        ),
    )
    line = summary(bundle(tmp_path, {"onnx-int8": "model.int8.onnx"}), "onnx-int8", report)
    assert "1.0 MB" in line
    assert "worst difference 3.0e-04" in line
    assert "certain of 25 %" in line
    assert "loses at most 0.75 points of accuracy, keeps the evidence of at least 96.0 %" in line


def test_next_steps_name_the_files_and_each_command_once(tmp_path: Path) -> None:
    lines = next_steps(bundle(tmp_path, {"onnx": "model.onnx", "onnx-edge": "model.edge.onnx"}), Path("data"))
    assert lines[0] == f"protoserve predict {tmp_path} PHOTO.jpg"
    assert f"protoserve validate {tmp_path} --data data --split test" in lines
    assert f"python examples/onnx_edge.py {tmp_path / 'model.edge.onnx'} PHOTO.jpg" in lines
    assert len(set(lines)) == len(lines)


def test_only_a_routed_file_has_a_share_of_certain_pictures(edge: Bundle) -> None:
    reports = read_parity(edge.directory)
    assert "certain of 100 % of the sample pictures" in summary(edge, "onnx-routed", reports["onnx-routed"])
    assert "certain" not in summary(edge, "onnx", reports["onnx"])


def test_every_target_has_a_next_step_without_placeholders(edge: Bundle) -> None:
    steps = next_steps(edge, None)
    assert f"protoserve serve {edge.directory} --port 3000" in steps
    for line in steps:
        assert "FILE" not in line and "FOLDER" not in line
