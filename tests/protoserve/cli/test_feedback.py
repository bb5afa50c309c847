"""`protoserve feedback`: a summary, a curation, a folder to label."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from protoserve.feedback.curation import read_curation
from protoserve.feedback.store import open_store
from tests.protoserve.cli.command_line import CommandLine
from tests.protoserve.feedback.records import MODEL, record


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file of feedback with a torn line."""
    file = tmp_path / "feedback.jsonl"
    picture = hashlib.sha256(b"picture").hexdigest()
    for each in (
        record(0),
        record(1, verdict="wrong", node="Fruit/Pear", image=picture),
        record(2, verdict="wrong reason", prototypes=[5], comment="the stamp"),
    ):
        open_store(str(file)).append(each)
    with file.open("a") as stream:
        stream.write('{"answer": "torn')
    return file


def test_a_summary_tells_verdicts_confusions_and_blame(kept: Path, protoserve_command: CommandLine) -> None:
    code, out, err = protoserve_command("feedback", kept)
    assert code == 0
    assert "1 right, 1 wrong, 1 wrong reason; 3 pictures" in out
    assert MODEL[:19] in out
    assert [line.split() for line in out.splitlines() if line.startswith("Fruit/Apple")] == [
        ["Fruit/Apple", "Fruit/Pear", "1"]
    ]
    assert "passed over 1 torn lines" in err
    code, out, _ = protoserve_command("feedback", kept, "--json")
    assert (code, json.loads(out)["torn"], json.loads(out)["records"]) == (0, 1, 3)


def test_a_curation_is_what_curate_reads(kept: Path, protoserve_command: CommandLine, tmp_path: Path) -> None:
    code, out, _ = protoserve_command("feedback", kept, "--curation")
    (tmp_path / "curation.jsonl").write_text(out)
    [line] = read_curation(tmp_path / "curation.jsonl")
    assert (code, line.prototype, line.reason, line.by) == (0, 5, "the stamp", "kiosk")
    assert protoserve_command("feedback", kept, "--curation", "--at-least", "2").out == ""


def test_pictures_are_copied_to_be_labelled(kept: Path, protoserve_command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"picture")
    arguments = ("feedback", kept, "--to-label", tmp_path / "to-label", "--pictures", tmp_path / "photos")
    code, out, _ = protoserve_command(*arguments)
    assert code == 0 and "1 pictures below the node that people named, 0 in undecided" in out
    assert [file.read_bytes() for file in (tmp_path / "to-label" / "Fruit" / "Pear").iterdir()] == [b"picture"]
    code, out, _ = protoserve_command(*arguments, "--json")
    assert (code, json.loads(out)["present"]) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--curation", "--to-label", "x", "--pictures", "y"), "ask for one of them"),
        (("--to-label", "x"), "belong together"),
        (("--pictures", "x"), "belong together"),
    ],
)
def test_contradictions_are_refused(
    kept: Path, protoserve_command: CommandLine, options: tuple[str, ...], message: str
) -> None:
    code, _, err = protoserve_command("feedback", kept, *options)
    assert code == 2 and message in err


def test_a_missing_file_is_named(protoserve_command: CommandLine, tmp_path: Path) -> None:
    code, _, err = protoserve_command("feedback", tmp_path / "nothing.jsonl")
    assert code == 2 and "nothing.jsonl: no such file" in err
