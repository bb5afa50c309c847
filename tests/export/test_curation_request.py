"""What people ask of `curate`, as a link of the chain."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest

from export.curation_request import EPOCH, lines_about, now, parse_ids, requested_link
from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


def feedback(folder: Path, *lines: dict[str, object]) -> Path:
    file = folder / "curation.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def line(bundle: Bundle, prototype: int, **changes: object) -> dict[str, object]:
    said = {"model": bundle.version, "prototype": prototype, "reason": "the shelf", "by": "Ben", "pictures": 2}
    return {**said, "at": "2026-01-01T00:00:00Z", **changes}


def ask(
    bundle: Bundle, disable: str = "", file: Path | None = None, reason: str = "the wall", by: str | None = "Ann"
) -> CurationLink:
    return requested_link(bundle, disable, "4", "", file, reason=reason, by=by, refitted=False)


def test_options_become_a_link(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EPOCH, "1767225600")
    found = ask(bundle, "12, 3")
    assert found == CurationLink(
        before=bundle.version, disabled=[12, 3], required=[4], reason="the wall", by="Ann", at="2026-01-01T00:00:00Z"
    )
    assert ask(bundle, by=None).by == getpass.getuser()


def test_feedback_adds_prototypes_and_a_reason(bundle: Bundle, tmp_path: Path) -> None:
    file = feedback(tmp_path, line(bundle, 3), line(bundle, 5, reason="the\nhand"), line(bundle, 6, model="sha256:x"))
    found = ask(bundle, "3", file, reason="")
    assert found.disabled == [3, 5] and found.reason == "feedback: the shelf; the hand"
    assert ask(bundle, "", file).reason == "the wall"


def test_feedback_that_is_carried_out_already_is_passed_over(bundle: Bundle, tmp_path: Path) -> None:
    link = ask(bundle, "3")
    done = Bundle(bundle.directory, bundle.manifest.model_copy(update={"curation": [link]}))
    file = feedback(tmp_path, line(bundle, 3), line(bundle, 5))
    assert [found.prototype for found in lines_about(done, file)] == [5]


def test_feedback_on_another_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is about version sha256:other, but .* is sha256:.*people commented on"):
        ask(bundle, "", feedback(tmp_path, line(bundle, 3, model="sha256:other")))


@pytest.mark.parametrize(
    ("disable", "reason", "message"),
    [
        ("3;4", "x", "--disable 3;4: '3;4' is not the number of a prototype; give numbers, as in 12,17"),
        ("-1", "x", "'-1' is not the number"),
        ("3", "  ", 'give --reason "…"'),
        ("3", "two\nlines", "--reason and --by are one line of text"),
    ],
)
def test_what_can_not_be_asked_says_how(bundle: Bundle, disable: str, reason: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(bundle, disable, reason=reason)


def test_no_number_is_no_prototype() -> None:
    assert parse_ids("--disable", " , ") == []


def test_a_clock_that_is_not_a_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EPOCH, "yesterday")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH='yesterday'"):
        now()
