"""The commands `export` and `validate`, from their arguments to their lines."""

import json
from pathlib import Path

from typer.testing import CliRunner

from export.targets.table import TARGETS
from protoserve.bundle.folder import read_bundle
from protoserve.cli.root import build_app


def test_the_command_shows_the_table() -> None:
    shown = CliRunner().invoke(build_app(), ["export", "--list-targets"])
    assert shown.exit_code == 0
    assert all(target.file in shown.output for target in TARGETS.values())


def test_export_prints_a_line_per_target_and_the_next_commands(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shown = CliRunner().invoke(build_app(), ["export", str(tiny_run), "--bundle", str(folder), "--name", "Kingdom"])
    assert shown.exit_code == 0, shown.output
    bundle = read_bundle(folder)
    assert shown.stdout.splitlines()[0].startswith("model.onnx")
    assert shown.stdout.splitlines()[-1] == f"{folder}   Kingdom {bundle.manifest.version[:19]}"
    assert f"protoserve predict {folder} PHOTO.jpg" in shown.stderr.replace("\n", "")


def test_export_refuses_an_empty_name(tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(tiny_run), "--bundle", str(tmp_path / "bundle"), "--name", " "]
    shown = CliRunner().invoke(build_app(), arguments)
    assert shown.exit_code == 2 and "--name is empty" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_validate_prints_the_scores_as_json(edge_bundle: Path, learned: tuple[Path, Path]) -> None:
    arguments = ["validate", str(edge_bundle), "--data", str(learned[1]), "--split", "val", "--device", "cpu", "--json"]
    shown = CliRunner().invoke(build_app(), arguments)
    assert shown.exit_code == 0, shown.output
    # The pictures of this data set lie under the leaf that the network predicts, but for the first few.
    assert json.loads(shown.stdout)["accuracy"]["leaf"] > 0.5
