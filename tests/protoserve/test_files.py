"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protoserve.errors import InputError, MissingExtraError
from protoserve.files import (
    DRAFT,
    file_hash,
    make_folder,
    new_file,
    new_folder,
    parse_yaml,
    read_yaml,
    remove_drafts,
    write_bytes,
    write_text,
    writing,
    yaml_text,
)

unprivileged = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---- files -------------------------------------------------------------------------------------------------


def test_a_written_file_holds_the_content_and_leaves_no_draft(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "grün\n")
    write_bytes(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "figure.png"
    file.write_bytes(b"old")
    with new_file(file, durable=durable) as draft:
        assert draft.suffix == ".png" and draft.parent == tmp_path
        draft.write_bytes(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new" and names(tmp_path) == ["figure.png"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), new_file(file) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert file.read_bytes() == b"old" and names(tmp_path) == ["state"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    file = tmp_path / "part"
    with new_file(file) as first, new_file(file) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert file.read_bytes() == b"first" and names(tmp_path) == ["part"]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_bytes(tmp_path / "written", b"")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    make_folder(tmp_path / "cache")
    drafts = [tmp_path / f"{DRAFT}0a1b2c3d.checkpoint.pt", tmp_path / "cache" / f"{DRAFT}44444444.fit-0-1.npy"]
    others = [tmp_path / "checkpoint.pt", tmp_path / ".hidden", tmp_path / "cache" / "fit-0-1.npy"]
    for file in (*drafts, *others):
        file.write_bytes(b"x")
    remove_drafts(tmp_path)
    assert not any(file.exists() for file in drafts) and all(file.exists() for file in others)


def test_an_open_draft_is_one_that_would_be_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "a") as draft:
        draft.write_bytes(b"x")
        remove_drafts(tmp_path)
    assert names(tmp_path) == []


def test_a_file_s_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# ---- folders -----------------------------------------------------------------------------------------------


def test_a_folder_appears_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "below" / "bundle"
    with new_folder(target, marker="manifest", overwrite=False) as draft:
        (draft / "manifest").write_text("1")
        assert not target.exists()
    assert names(target) == ["manifest"] and names(target.parent) == ["bundle"]
    (tmp_path / "usual").mkdir()
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_is_replaced_only_on_demand_and_only_by_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    make_folder(target)
    write_text(target / "manifest", "old")
    with pytest.raises(InputError, match="bundle exists; give another place or allow --overwrite"):
        new_folder(target, marker="manifest", overwrite=False).__enter__()
    with pytest.raises(ZeroDivisionError), new_folder(target, marker="manifest", overwrite=True):
        raise ZeroDivisionError
    assert (target / "manifest").read_text() == "old" and names(tmp_path) == ["bundle"]
    with new_folder(target, marker="manifest", overwrite=True) as draft:
        write_text(draft / "manifest", "new")
    assert (target / "manifest").read_text() == "new" and names(tmp_path) == ["bundle"]


def test_a_folder_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="photos exists and holds no manifest; it is not overwritten"):
        new_folder(tmp_path / "photos", marker="manifest", overwrite=True).__enter__()
    assert names(tmp_path / "photos") == ["1.jpg"]


def test_a_folder_that_can_t_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"file.*: can't make this folder"):
            make_folder(place)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@unprivileged
def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(InputError, match="locked: this folder is not writable"):
        make_folder(tmp_path / "locked")


# ---- YAML --------------------------------------------------------------------------------------------------


def test_yaml_is_read_and_written_back_in_order(tmp_path: Path) -> None:
    content = {"name": "a", "zeta": [1, 2.5, None, True], "alpha": {"é": "yes", "text": "1e-4"}, "empty": {}}
    write_text(tmp_path / "a.yaml", yaml_text(content))
    found = read_yaml(tmp_path / "a.yaml")
    assert found == content and list(found) == list(content)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 3),
        ("a:\n  x: 1\n  y:\n    x: 1\n  x: 2\n", "x", 5),
        ("{b: 1, b: 2}", "b", 1),
        ("'b c': 1\n\n'b c': 2\n", "b c", 3),
        ("1: 1\n01: 2\n", "01", 2),
    ],
)
def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path, text: str, key: str, line: int) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"c\.yaml, line {line}: the key '{key}' is given twice; keep one"):
        read_yaml(tmp_path / "c.yaml")


def test_the_same_key_in_two_mappings_is_allowed() -> None:
    assert parse_yaml("a: {x: 1}\nb: {x: 2}\n", "text") == {"a": {"x": 1}, "b": {"x": 2}}
    # A merge key supplies defaults, which the mapping may override.
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\n", "text")["b"] == {"x": 2}


def test_words_stay_words_and_exponents_are_numbers() -> None:
    assert parse_yaml("{a: no, b: on, c: 1e-4, d: true, e: 12:30}", "text") == {
        "a": "no",
        "b": "on",
        "c": 1e-4,
        "d": True,
        "e": "12:30",
    }


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: *b", "a: 1\n---\nb: 2\n", "a: 2020-13-45", "- a\nb"])
def test_invalid_yaml_names_its_origin(text: str) -> None:
    with pytest.raises(InputError, match="--set a: not valid YAML"):
        parse_yaml(text, "--set a")


def test_yaml_constructs_no_objects() -> None:
    with pytest.raises(InputError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.getcwd []", "text")


def test_a_file_that_can_t_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("é: 1".encode("latin-1"))
    for file in (tmp_path, tmp_path / "nothing.yaml", tmp_path / "latin.yaml"):
        with pytest.raises(InputError, match=rf"{file.name}: can't read it .*UTF-8"):
            read_yaml(file)


def test_yaml_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(MissingExtraError, match=r"reading c\.yaml needs the extra 'train'"):
        parse_yaml("a: 1", "c.yaml")


# ---- places that refuse a write --------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file larger than `size` bytes; the system then fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_finds_no_space_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_bytes(b"old")
    with (
        pytest.raises(InputError, match=r"state: can't write it \(File too large\); free some space"),
        largest_file(10),
    ):
        write_bytes(file, bytes(1000))
    assert file.read_bytes() == b"old" and names(tmp_path) == ["state"]


def test_a_folder_that_finds_no_space_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    with (
        pytest.raises(InputError, match=r"bundle: can't write it .*; free some space"),
        largest_file(10),
        new_folder(directory, marker="m", overwrite=False) as draft,
    ):
        (draft / "part").write_bytes(bytes(1000))
    assert names(tmp_path) == []


def test_a_copy_of_a_folder_that_finds_no_space_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "part").write_bytes(bytes(1000))
    refused = pytest.raises(InputError, match=r"copy: can't write it \(File too large\)")
    with refused, largest_file(10), writing(tmp_path / "copy"):
        shutil.copytree(tmp_path / "source", tmp_path / "copy")


def test_an_error_without_a_number_on_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries in C++ give no error number, so the free space tells."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    for error in (shutil.Error([("a", "b", "failed")]), RuntimeError("write failed")):
        with (
            pytest.raises(InputError, match=r"run: can't write it \(No space left on device\); free some space on the"),
            writing(tmp_path / "run"),
        ):
            raise error


def test_a_missing_right_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(
            InputError, match=r"report\.html: can't write it \(Permission denied\); give this user the right"
        ),
        writing(tmp_path / "report.html"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "report.html"))


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/another/place"),
        FileNotFoundError(errno.ENOENT, "No such file", "gone"),
        RuntimeError("a mistake"),
    ],
)
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, writing(tmp_path / "report.html"):
        raise error
    assert raised.value is error
