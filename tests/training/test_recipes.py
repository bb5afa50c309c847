"""Recipes are found by name from any folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from protoserve.errors import InputError
from training.commands import ConfigArgument
from training.config import read_config
from training.recipes import GENERAL, config_file, recipes


def test_every_recipe_has_a_name_a_purpose_and_a_valid_configuration() -> None:
    assert [recipe.name for recipe in recipes()][: len(GENERAL)] == list(GENERAL)
    for recipe in recipes():
        assert read_config(config_file(recipe.name)).name == recipe.name
        assert recipe.purpose.endswith(".")


def test_the_help_names_every_recipe() -> None:
    _, described = get_args(ConfigArgument)
    assert set(re.findall(r"[a-z0-9-]+", described.help)) >= {recipe.name for recipe in recipes()}


def test_a_file_goes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file("frozen").is_absolute()
    Path("frozen").write_text("name: mine\n")
    assert config_file("frozen") == Path("frozen")


def test_an_unknown_name_suggests_the_nearest_recipe() -> None:
    with pytest.raises(InputError, match=r"frozn: neither a configuration file nor a recipe.*'frozen'.*grocery"):
        config_file("frozn")
    with pytest.raises(InputError, match="'grocery'"):
        config_file("training/configs/grocry.yaml")
