"""The change of a model while requests go on."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protoserve.errors import BundleError
from service.app import create_app
from service.current import CurrentModel, watch
from service.settings import Settings

if TYPE_CHECKING:
    from starlette.testclient import TestClient


def renamed(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle named after its folder, with sums and version that fit."""
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"name": copy.name, "version": f"sha256:{hashlib.sha256(copy.name.encode()).hexdigest()}"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    digest = hashlib.sha256((copy / "manifest.json").read_bytes()).hexdigest()
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    sums = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in lines]
    (copy / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return copy


@pytest.fixture
def link(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A link to a bundle, as one moves it to change the model."""
    place = tmp_path / "current"
    place.symlink_to(tiny_bundle)
    return place


def move(link: Path, target: Path) -> None:
    draft = link.with_name("draft")
    draft.symlink_to(target)
    draft.replace(link)


def test_a_link_that_is_moved_changes_the_model(link: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    model = CurrentModel(lambda: link, "cpu", 1)
    before = model()
    assert not model.look()
    move(link, renamed(tiny_bundle, tmp_path / "second"))
    assert model.look()
    assert (model().classifier.bundle.manifest.name, before.classifier.bundle.manifest.name) == ("second", "tiny")
    # Who began with the first still reads the first, though the link points elsewhere.
    assert before.classifier.bundle.picture(0).is_relative_to(tiny_bundle.resolve())
    assert not model.look()


@pytest.mark.parametrize("torn", ["model.onnx", "manifest.json", "SHA256SUMS"])
def test_a_torn_bundle_is_refused_and_the_old_model_stays(
    link: Path, tiny_bundle: Path, tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = CurrentModel(lambda: link, "cpu", 1)
    before = model()
    broken = renamed(tiny_bundle, tmp_path / "broken")
    content = (broken / torn).read_bytes()
    (broken / torn).write_bytes(content[: len(content) // 2])
    move(link, broken)
    for _ in range(3):
        assert not model.look()
    assert model() is before
    # Said once, not at every look.
    assert sum("can't be used" in line for line in caplog.messages) == 1
    # What is mended afterwards is taken.
    move(link, renamed(tiny_bundle, tmp_path / "mended"))
    assert model.look()


def test_a_bundle_that_vanishes_is_refused(link: Path, tmp_path: Path) -> None:
    model = CurrentModel(lambda: link, "cpu", 1)
    move(link, tmp_path / "nowhere")
    assert not model.look()
    assert model().classifier.bundle.manifest.name == "tiny"


def test_a_service_does_not_start_with_a_torn_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = renamed(tiny_bundle, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        CurrentModel(lambda: broken, "cpu", 1)


def test_no_request_is_lost_while_the_model_changes_and_each_names_its_version(
    client: TestClient, link: Path, tiny_bundle: Path, tmp_path: Path, photograph: Path
) -> None:
    model = CurrentModel(lambda: link, "cpu", 1)
    versions = {model().version}
    fresh = [renamed(tiny_bundle, tmp_path / f"number-{number}") for number in range(3)]
    data, stop = photograph.read_bytes(), threading.Event()
    with type(client)(create_app(Settings(max_batch=4), model)) as asking:

        def ask() -> list[tuple[int, str, list[str]]]:
            found = []
            while not stop.is_set():
                response = asking.post("/v1/predict", content=data)
                document = response.json()
                found.append((response.status_code, document["model"]["version"], document["path"]))
            return found

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask) for _ in range(4)]
            for bundle in fresh:
                move(link, bundle)
                assert model.look()
                versions.add(model().version)
            stop.set()
            answers = [answer for future in asked for answer in future.result()]
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} <= versions
    # The same weights, so the same answer, whoever gave it.
    assert len({tuple(path) for _, _, path in answers}) == 1


def test_the_watch_changes_the_model_by_itself(link: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    model = CurrentModel(lambda: link, "cpu", 1)
    stop = watch(model, 0.01)
    try:
        move(link, renamed(tiny_bundle, tmp_path / "watched"))
        for _ in range(1000):
            if model().classifier.bundle.manifest.name == "watched":
                break
            threading.Event().wait(0.01)
        assert model().classifier.bundle.manifest.name == "watched"
    finally:
        stop.set()


def test_a_picture_of_a_model_that_was_removed_is_no_failure_of_ours(
    client: TestClient, tiny_bundle: Path, tmp_path: Path
) -> None:
    gone = renamed(tiny_bundle, tmp_path / "gone")
    model = CurrentModel(lambda: gone, "cpu", 1)
    with type(client)(create_app(Settings(), model), raise_server_exceptions=False) as asking:
        assert asking.get("/v1/prototypes/0/image").status_code == 200
        shutil.rmtree(gone)
        response = asking.get("/v1/prototypes/0/image")
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        assert response.headers["retry-after"] == "1"
