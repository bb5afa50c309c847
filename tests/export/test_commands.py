"""The commands `export`, `validate` and `centre`, from their arguments to their lines."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from export.targets.table import TARGETS
from protoserve.bundle.folder import read_bundle
from protoserve.cli.root import build_app
from tests.bundles import older_bundle


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
    assert "centre" not in shown.stderr


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
    shown = CliRunner().invoke(build_app(), arguments[:-1])
    assert shown.stdout.splitlines()[-1].startswith("evidence not audited; run 'protoserve audit")


def test_centre_prints_what_tells_classes_apart_and_what_to_do_next(learned: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(learned[0], tmp_path / "run")
    shown = CliRunner().invoke(build_app(), ["centre", str(run), "--data", str(learned[1]), "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(f"{run}: usual similarities of ") and "tell their class" in shown.stdout
    assert f"protoserve export {run} --bundle BUNDLE" in shown.stderr


def test_centring_a_bundle_names_the_files_that_keep_their_order(
    tiny_bundle: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    older = older_bundle(read_bundle(tiny_bundle), tmp_path / "older")
    arguments = ["centre", str(older.directory), "--data", str(learned[1]), "--device", "cpu"]
    shown = CliRunner().invoke(build_app(), arguments)
    assert shown.exit_code == 0, shown.output
    assert f"version {read_bundle(older.directory).version[:19]}" in shown.stderr
    assert "note: evidence in model.torchscript keeps its own order" in shown.stderr


def test_export_of_a_run_without_usual_similarities_says_how_to_measure_them(tiny_run: Path, tmp_path: Path) -> None:
    from protoserve.networks.model_file import load_network, save_network
    from protoserve.networks.network import PrototypeNetwork

    run = shutil.copytree(tiny_run, tmp_path / "run")
    network, description, sources = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    network.head.usual.zero_()
    save_network(run / "model.pt", network, description, sources)
    shown = CliRunner().invoke(build_app(), ["export", str(run), "--to", "onnx", "--bundle", str(tmp_path / "bundle")])
    assert shown.exit_code == 0, shown.output
    assert f"run 'protoserve centre {run} --data DIR' and export again" in shown.stderr
