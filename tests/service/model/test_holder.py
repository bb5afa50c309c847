"""Loading and warming up a model, and replacing it while requests go on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import protoserve
from protoserve.errors import BundleError, DeviceError
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Engine, Outputs
from service.model import holder as holder_module
from service.model.holder import ModelHolder, watch
from service.settings import Settings
from tests.service.bundles import endless_bundle, rename_bundle
from tests.service.running import RunApp

SETTINGS = Settings(device="cpu", threads=1)


@pytest.fixture
def link(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A link to a bundle, which tests move to change the model."""
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    return link


@pytest.fixture
def holder(link: Path) -> ModelHolder:
    """A holder that follows the link."""
    return ModelHolder(lambda: link, SETTINGS)


def move(link: Path, target: Path) -> None:
    draft = link.with_name("draft")
    draft.symlink_to(target)
    draft.replace(link)


def name_of(holder: ModelHolder) -> str:
    return holder.current().classifier.bundle.name


# ---- warming up


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The size of every inference of this process."""
    sizes: list[int] = []
    run = Engine.run

    def note_size(engine: Engine, images: NDArray[np.uint8], *, seconds: float | None = None) -> Outputs:
        sizes.append(len(images))
        return run(engine, images, seconds=seconds)

    monkeypatch.setattr(Engine, "run", note_size)
    yield sizes


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that looks to the engine as if it had a GPU; sessions still run on the CPU."""
    monkeypatch.setattr("protoserve.inference.engine.has_nvidia_driver", lambda: True)
    monkeypatch.setattr(
        Engine, "_cuda_session", lambda self, threads: self._new_session(["CPUExecutionProvider"], threads)
    )


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_on_a_gpu_the_batch_that_is_served_has_been_warmed_up(
    device: Any, tiny_bundle: Path, photograph: Path, run_app: RunApp, batch_sizes: list[int], monkeypatch: Any
) -> None:
    settings = Settings(device=device, threads=1)
    holder = ModelHolder(lambda: tiny_bundle, settings)
    assert holder.current().classifier.engine.device == "cuda"
    assert batch_sizes == [1, 16]
    batch_sizes.clear()
    # The first inference waits until all 20 images of a batch request are decoded.
    decoded, all_decoded = [], threading.Event()
    fit, run = Classifier.fit, Engine.run

    def count(classifier: Classifier, *arguments: Any, **named: Any) -> Any:
        image = fit(classifier, *arguments, **named)
        decoded.append(image)
        if len(decoded) == 20:
            threading.Timer(0.2, all_decoded.set).start()
        return image

    def wait(engine: Engine, images: NDArray[np.uint8]) -> Outputs:
        assert all_decoded.wait(30)
        return run(engine, images)

    monkeypatch.setattr(Classifier, "fit", count)
    monkeypatch.setattr(Engine, "run", wait)
    client = run_app(holder.current, device=device, lanes=1, max_images=20)
    files = [("image", (str(index), photograph.read_bytes())) for index in range(20)]
    response = client.post("/v1/predict/batch", files=files)
    assert all(item["prediction"] for item in response.json()["results"])
    assert batch_sizes == [1, 16, 3]


@pytest.mark.parametrize(("max_batch", "sizes"), [(None, [1]), (1, [1]), (5, [1, 5])])
def test_on_a_cpu_the_batch_that_is_served_has_been_warmed_up(
    max_batch: int | None, sizes: list[int], tiny_bundle: Path, batch_sizes: list[int]
) -> None:
    holder = ModelHolder(lambda: tiny_bundle, Settings(device="cpu", threads=1, max_batch=max_batch))
    assert batch_sizes == sizes
    assert holder.current().batch_limit == sizes[-1]


# ---- replacing


def test_moving_the_link_replaces_the_model(holder: ModelHolder, link: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    before = holder.current()
    assert not holder.reload()
    move(link, rename_bundle(tiny_bundle, tmp_path / "second"))
    assert holder.reload()
    assert (name_of(holder), before.classifier.bundle.name) == ("second", "tiny")
    # A request that started with the first model still reads its files.
    assert before.classifier.bundle.picture(0).is_relative_to(tiny_bundle.resolve())
    assert not holder.reload()


@pytest.mark.parametrize("torn", ["model.onnx", "manifest.json", "SHA256SUMS"])
def test_a_torn_bundle_is_refused_and_the_old_model_stays(
    holder: ModelHolder, link: Path, tiny_bundle: Path, tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = holder.current()
    broken = rename_bundle(tiny_bundle, tmp_path / "broken")
    content = (broken / torn).read_bytes()
    (broken / torn).write_bytes(content[: len(content) // 2])
    move(link, broken)
    for _ in range(3):
        assert not holder.reload()
    assert holder.current() is before
    # Logged once, not on every check.
    assert sum("cannot be used" in line for line in caplog.messages) == 1
    move(link, rename_bundle(tiny_bundle, tmp_path / "repaired"))
    assert holder.reload()


def test_a_missing_bundle_is_refused(holder: ModelHolder, link: Path, tmp_path: Path) -> None:
    move(link, tmp_path / "nowhere")
    assert not holder.reload()
    assert name_of(holder) == "tiny"


def test_a_torn_bundle_is_no_first_model(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = rename_bundle(tiny_bundle, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        ModelHolder(lambda: broken, SETTINGS)


def test_no_request_is_lost_during_reloads_and_each_names_its_version(
    run_app: RunApp, link: Path, tiny_bundle: Path, tmp_path: Path, photograph: Path
) -> None:
    holder = ModelHolder(lambda: link, Settings(device="cpu", threads=1, max_batch=4))
    versions = [holder.current().version]
    bundles = [rename_bundle(tiny_bundle, tmp_path / f"bundle-{index}") for index in range(3)]
    data, stop = photograph.read_bytes(), threading.Event()
    client = run_app(holder.current, max_batch=4)

    def ask() -> list[tuple[int, str, list[str]]]:
        answers = []
        while not stop.is_set():
            response = client.post("/v1/predict", content=data)
            document = response.json()
            answers.append((response.status_code, document["model"]["version"], document["path"]))
        return answers

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(ask) for _ in range(4)]
        try:
            for bundle in bundles:
                move(link, bundle)
                assert holder.reload()
                versions.append(holder.current().version)
        finally:
            stop.set()
        answers = [answer for thread in threads for answer in thread.result()]
    last = client.post("/v1/predict", content=data).json()["model"]["version"]
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} <= set(versions)
    assert (answers[0][1], last) == (versions[0], versions[-1])
    # All versions have the same weights, so their answers are equal.
    assert len({tuple(path) for _, _, path in answers}) == 1


def test_the_watch_reloads_by_itself(holder: ModelHolder, link: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    stop = watch(holder, 0.01)
    try:
        move(link, rename_bundle(tiny_bundle, tmp_path / "watched"))
        for _ in range(1000):
            if name_of(holder) == "watched":
                break
            threading.Event().wait(0.01)
        assert name_of(holder) == "watched"
    finally:
        stop.set()


# ---- models that do not answer, or change while they are loaded


def test_a_model_that_never_answers_is_refused_and_the_old_one_stays(
    holder: ModelHolder, link: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(holder_module, "WARM_UP_SECONDS", 0.3)
    before = holder.current()
    move(link, endless_bundle(tiny_bundle, tmp_path / "endless"))
    assert not holder.reload()
    assert holder.current() is before
    assert "did not end within 0.3 seconds" in caplog.text
    # The thread that checks is free for the next model.
    move(link, rename_bundle(tiny_bundle, tmp_path / "next"))
    assert holder.reload()
    assert name_of(holder) == "next"


def test_a_first_model_that_never_answers_ends_the_start(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder_module, "WARM_UP_SECONDS", 0.3)
    endless = endless_bundle(tiny_bundle, tmp_path / "endless")
    with pytest.raises(DeviceError, match=r"did not end within 0\.3 seconds"):
        ModelHolder(lambda: endless, SETTINGS)


def test_a_bundle_that_changes_while_it_is_loaded_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = rename_bundle(tiny_bundle, tmp_path / "served")

    def load_while_it_is_exported_again(directory: Path, **options: Any) -> Classifier:
        classifier = protoserve.load(directory, **options)
        shutil.rmtree(served)
        rename_bundle(tiny_bundle, served, "another")
        return classifier

    monkeypatch.setattr(holder_module, "load", load_while_it_is_exported_again)
    with pytest.raises(BundleError, match="changed while it was loaded"):
        ModelHolder(lambda: served, SETTINGS)
