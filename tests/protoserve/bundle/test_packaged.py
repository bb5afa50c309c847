"""The bundle that comes with the package: found by its name, whole, small, true, and never changed."""

from __future__ import annotations

from pathlib import Path

import pytest

import protoserve
from protoserve.bundle.folder import read_bundle, rewrite_manifest
from protoserve.bundle.packaged import FOLDER, check_changeable, located
from protoserve.errors import InputError


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_name_leads_to_it_from_any_folder(elsewhere: Path) -> None:
    assert located("demo") == FOLDER
    assert located(Path("demo")) == FOLDER
    assert read_bundle("demo").directory == FOLDER
    # `make demo` works in a folder of this name, which is no bundle itself.
    (elsewhere / "demo" / "bundle").mkdir(parents=True)
    assert located("demo") == FOLDER
    assert located("demo/bundle") == Path("demo/bundle")
    assert located(elsewhere / "demo") == elsewhere / "demo"


@pytest.mark.parametrize("own", ["manifest.json", "SHA256SUMS", "ensemble.json", "model.pt"])
def test_a_model_of_that_name_goes_before_it(elsewhere: Path, own: str) -> None:
    (elsewhere / "demo").mkdir()
    (elsewhere / "demo" / own).touch()
    assert located("demo") == Path("demo")


def test_it_explains_its_own_samples() -> None:
    model = protoserve.load("demo", device="cpu")
    bundle = read_bundle("demo")
    assert len(bundle.manifest.samples) >= 4
    for sample in range(len(bundle.manifest.samples)):
        prediction = model.predict(bundle.read_sample(sample))
        assert len(prediction.path) == 3
        assert all(level.evidence for level in prediction.levels)
        assert prediction.answer is not None


def test_it_says_how_it_was_made_and_how_true_its_evidence_is() -> None:
    manifest = read_bundle("demo").manifest
    assert manifest.provenance.config["name"] == "rendered"
    assert manifest.truth is not None
    for hits in manifest.truth.parts:
        if hits.part == "object":
            assert hits.first.measured.mean > 2 * hits.first.baseline.mean
    assert manifest.promise is not None


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 5e6


def test_nothing_changes_it() -> None:
    bundle = read_bundle("demo")
    with pytest.raises(InputError, match="comes with the package and stays as it is; change a copy: cp -r"):
        rewrite_manifest(bundle, name="mine")
    with pytest.raises(InputError, match="change a copy"):
        check_changeable(FOLDER)
    check_changeable(Path("bundles/demo"))
