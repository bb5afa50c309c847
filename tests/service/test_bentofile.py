"""`bentofile.yaml` lists the packages of `pyproject.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_bento_installs_the_core_and_the_extra_serve() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packed = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    # BentoML adds itself, in the version that builds.
    extra = [name for name in project["optional-dependencies"]["serve"] if not name.startswith("bentoml")]
    assert {package.replace(" ", "") for package in packed} == {
        package.replace(" ", "") for package in (*project["dependencies"], *extra)
    }
