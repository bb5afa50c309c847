"""A finished run is read whole before its classes change, or the reason is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from protoserve.errors import InputError
from protoserve.networks.model_file import load_network, save_network
from training.extending.finished import read_finished


def test_a_finished_run_is_read(small_run: Path) -> None:
    finished = read_finished(small_run)
    assert finished.taxonomy.names == ("A", "B", "A/x", "A/y")
    assert len(finished.sources) == len(finished.network.head.prototypes)
    assert finished.config.name == "small"


def test_prototypes_without_sources_are_refused(small_run: Path, tmp_path: Path) -> None:
    network, description, _ = load_network(small_run / "model.pt")
    save_network(tmp_path / "model.pt", network, description)
    with pytest.raises(InputError, match="its prototypes were never projected to pictures; train again"):
        read_finished(tmp_path)


def test_a_run_that_does_not_say_how_it_was_trained_is_refused(small_run: Path, tmp_path: Path) -> None:
    shutil.copyfile(small_run / "model.pt", tmp_path / "model.pt")
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match=r"provenance\.json: the key 'name' is missing"):
        read_finished(tmp_path)
