"""Environments for converters: kept, made anew, and failures that say what to do."""

import hashlib
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from export.targets.converters import convert, converter, default_folder
from protoserve.errors import InputError


def test_the_folder_is_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "protoserve" / "converters"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "protoserve" / "converters"


def test_an_environment_of_the_same_versions_stays(tmp_path: Path) -> None:
    constraints = (files("export.targets") / "litert-constraints.txt").read_text()
    (tmp_path / "litert").mkdir()
    stated = hashlib.sha256((constraints + "litert-torch" + sys.version).encode()).hexdigest()
    (tmp_path / "litert" / "installed").write_text(stated)
    steps: list[str] = []
    python = converter("litert", "litert-torch", tmp_path, steps.append)
    assert python.is_relative_to(tmp_path / "litert") and steps == []


def test_what_pip_can_not_install_is_said_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "litert").mkdir()
    (tmp_path / "litert" / "pyvenv.cfg").touch()
    (tmp_path / "litert" / "installed").write_text("of older versions")
    steps: list[str] = []
    with pytest.raises(InputError, match=r"pip can't install .*gone.* into .*litert \(.+\); check that pip can reach"):
        converter("litert", str(tmp_path / "gone"), tmp_path, steps.append)
    assert not (tmp_path / "litert" / "installed").exists()
    assert steps == [f"installing {tmp_path / 'gone'} into {tmp_path / 'litert'}, once"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "litert").mkdir()
    (tmp_path / "litert" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else than a converter; give another folder: --converters"):
        converter("litert", "litert-torch", tmp_path, lambda step: None)
    assert (tmp_path / "litert" / "notes.txt").read_text() == "mine"


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't make an environment .*--converters DIR"):
        converter("litert", "litert-torch", tmp_path / "file", lambda step: None)


def test_a_converter_that_fails_gives_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"litert_converting\.py failed \(.+\); leave the target out"):
        convert(Path(sys.executable), "litert_converting.py", ["-"])
    with pytest.raises(InputError, match=r"failed: No such file or directory; leave the target out"):
        convert(tmp_path / "gone", "litert_converting.py", [])
