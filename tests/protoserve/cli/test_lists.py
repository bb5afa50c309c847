"""The command `lists`: it keeps what it is given, as a new version, and refuses what can't be met."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protoserve.bundle.folder import read_bundle
from protoserve.cli.root import build_app


def lists(*arguments: str) -> str:
    return CliRunner().invoke(build_app(), ["lists", *arguments], catch_exceptions=False).stdout


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> str:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return str(tmp_path / "bundle")


def test_a_list_is_kept_in_a_new_version_and_removed_again(bundle: str) -> None:
    before = read_bundle(bundle).version
    assert lists(bundle) == "no lists\n"
    out = lists(bundle, "--add", "zoo", "--allow", "Animal", "--depth", "Animal/Ape:2", "--prior", "Animal/Lion:3")
    after = read_bundle(bundle)
    assert out == f"zoo: allow Animal; depth Animal/Ape:2; prior Animal/Lion:3\nversion {after.version[:19]}\n"
    assert after.version != before
    kept = json.loads(lists(bundle, "--json"))
    assert kept == {"zoo": {"allow": ["Animal"], "deny": [], "depth": {"Animal/Ape": 2}, "prior": {"Animal/Lion": 3.0}}}
    assert lists(bundle, "--remove", "zoo").startswith("no lists\n")
    assert read_bundle(bundle).manifest.lists == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--add", "zoo"), "the list is empty"),
        (("--add", " zoo", "--allow", "Animal"), "a name has 1 to 80 characters"),
        (("--allow", "Animal"), "describe the list of --add NAME"),
        (("--add", "zoo", "--remove", "zoo"), "do one at a time"),
        (("--remove", "zoo"), "has no list 'zoo'"),
        (("--add", "zoo", "--allow", "Animul"), "'Animul'.*'Animal'"),
        (("--add", "zoo", "--deny", "Animal", "--deny", "Tool", "--deny", "Scuba"), "leave no class"),
        (("--add", "zoo", "--depth", "Animal"), "--depth Animal: write NODE:LEVEL"),
    ],
)
def test_what_can_not_be_a_list_is_refused_and_changes_nothing(
    bundle: str, arguments: tuple[str, ...], message: str
) -> None:
    before = read_bundle(bundle).version
    ended = CliRunner().invoke(build_app(), ["lists", bundle, *arguments])
    assert ended.exit_code == 2 and re.search(message, ended.stderr)
    assert read_bundle(bundle).version == before
