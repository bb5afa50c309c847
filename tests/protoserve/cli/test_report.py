"""The command `report` on bundles; runs are tested in `tests/training/outcome/test_report.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.protoserve.cli.command_line import CommandLine


def test_a_bundle_s_report_is_written_beside_it_or_where_asked(
    tiny_bundle: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    file = tmp_path / "page.html"
    code, out, err = protoserve_command("report", tiny_bundle, "-o", file)
    assert (code, err) == (0, "") and out.startswith(f"{file}: ")
    assert out.splitlines()[1].startswith("evidence not audited; run 'protoserve audit")
    html = file.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "repeat the command with --data DIR" in html
    code, _, err = protoserve_command("report", tiny_bundle, "-o", tiny_bundle / "report.html")
    assert code == 2 and "lies in the bundle" in err and not (tiny_bundle / "report.html").exists()
    code, _, err = protoserve_command("report", tiny_bundle, "-o", tmp_path / "none" / "page.html")
    assert code == 2 and "there is no folder" in err


def test_with_data_the_mistakes_are_in_it(tiny_bundle: Path, tmp_path: Path, protoserve_command: CommandLine) -> None:
    for leaf in ("Scuba", "Animal/Lion"):
        (tmp_path / "data" / "test" / leaf).mkdir(parents=True)
        Image.effect_noise((96, 64), 80).convert("RGB").save(tmp_path / "data" / "test" / leaf / "0.png")
    file = tmp_path / "page.html"
    options = ("--data", tmp_path / "data", "--device", "cpu", "-o", file)
    code, _, err = protoserve_command("report", tiny_bundle, *options)
    assert code == 0, err
    assert "of 2 pictures of data/test are answered wrongly" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bundle", "other"), "is a bundle itself; leave --bundle out"),
        (("--data", "nowhere"), "no split 'test'"),
    ],
)
def test_mistaken_options(
    tiny_bundle: Path, tmp_path: Path, options: tuple[str, ...], message: str, protoserve_command: CommandLine
) -> None:
    code, out, err = protoserve_command("report", tiny_bundle, *options, "-o", tmp_path / "page.html")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_what_is_neither_a_run_nor_a_bundle_costs_one_line(tmp_path: Path, protoserve_command: CommandLine) -> None:
    code, _, err = protoserve_command("report", tmp_path, "-o", tmp_path / "page.html")
    assert code == 2 and "manifest.json is missing" in err and err.count("\n") == 1


def test_the_report_of_a_run_needs_the_extra_that_makes_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protoserve_command: CommandLine
) -> None:
    (tmp_path / "config.yaml").touch()
    monkeypatch.setitem(sys.modules, "training.outcome.report", None)
    code, _, err = protoserve_command("report", tmp_path)
    assert code == 2 and "protoserve[train]" in err and err.count("\n") == 1
