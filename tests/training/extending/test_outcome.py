"""The folder of a changed run: pictures of old prototypes are copied, and the run exports like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from protoserve.networks.model_file import load_network
from protoserve.run.folder import open_run
from training.extending.changes import read_changes
from training.extending.extending import extend


@pytest.fixture(scope="module")
def smaller(small_run: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "smaller"
    changes = read_changes([], ["A/x"], [], [])
    extend(small_run, changes, small_data, output, tolerance=100, device="cpu", console=Console(quiet=True))
    return output


def test_pictures_follow_the_prototypes_that_stay(smaller: Path, small_run: Path) -> None:
    run, before = open_run(smaller), open_run(small_run)
    sources, old = load_network(run.model)[2], load_network(before.model)[2]
    assert sources is not None and old is not None
    stay = [number for number, source in enumerate(old) if source in sources]
    assert 0 < len(stay) < len(old)
    for number in stay:
        assert run.picture(sources.index(old[number])).read_bytes() == before.picture(number).read_bytes()
    analysis = run.analysis()
    assert analysis is not None
    assert {patch.leaf for prototype in analysis.prototypes for patch in prototype.patches} == {"A/y", "B"}


def test_the_history_of_training_stays(smaller: Path, small_run: Path) -> None:
    assert (smaller / "history.csv").read_text().count("\n") == (small_run / "history.csv").read_text().count("\n")
    assert open_run(smaller).metrics().joint is None
    assert not (smaller / "cache").exists()


def test_it_exports(smaller: Path, tmp_path: Path) -> None:
    from export.bundling import export_bundle

    bundle = export_bundle(open_run(smaller), tmp_path / "bundle", name="smaller")
    assert [change.node for change in bundle.manifest.provenance.changes] == ["A/x"]
