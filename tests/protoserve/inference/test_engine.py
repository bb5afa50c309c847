"""The session over a bundle: its answers, its errors, and that threads don't disturb each other."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.device import has_nvidia_driver
from protoserve.errors import BundleError, DeviceError, InputError
from protoserve.graph_signature import OUTPUT_NAMES
from protoserve.inference.engine import Engine, Outputs
from tests.protoserve.inference.wrong_images import CHANGES, Change
from tests.service.bundles import endless_bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, device="cpu")


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> NDArray[np.uint8]:
    rule = bundle.manifest.input
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (5, rule.height, rule.width, 3), dtype=np.uint8)


def same(one: Outputs, other: Outputs) -> None:
    for name in OUTPUT_NAMES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_outputs_have_the_contract_shapes(bundle: Bundle, engine: Engine, images: NDArray[np.uint8]) -> None:
    answer = engine.run(images)
    graph, tree = bundle.manifest.graph, bundle.taxonomy
    assert len(answer) == 5
    assert answer.log_probability.shape == answer.logit.shape == (5, len(tree.nodes))
    assert answer.path.shape == (5, tree.depth)
    for name in ("prototype", "similarity", "weight", "contribution", "cell"):
        assert getattr(answer, f"evidence_{name}").shape == (5, tree.depth, graph.top_k)
    assert answer.evidence_map.shape == (5, tree.depth, graph.top_k, graph.rows, graph.columns)
    assert answer.similarity.shape == answer.cell.shape == (5, graph.prototypes)
    for name in ("path", "evidence_prototype", "evidence_cell", "cell"):
        assert getattr(answer, name).dtype == np.int64
    assert answer.log_probability.dtype == np.float32


def test_the_answer_of_an_image_does_not_depend_on_its_batch(engine: Engine, images: NDArray[np.uint8]) -> None:
    together = engine.run(images)
    for number in range(len(images)):
        alone = engine.run(images[number : number + 1])
        same(alone, Outputs(**{name: getattr(together, name)[number : number + 1] for name in OUTPUT_NAMES}))


def test_slices_and_views_are_read_rightly(engine: Engine, images: NDArray[np.uint8]) -> None:
    same(engine.run(images[:, :, ::-1]), engine.run(np.ascontiguousarray(images[:, :, ::-1])))


def test_several_threads_get_their_own_answers(engine: Engine, images: NDArray[np.uint8]) -> None:
    alone = [engine.run(images[number : number + 1]) for number in range(5)]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda turn: engine.run(images[turn % 5 : turn % 5 + 1]), range(25)))
    for turn, answer in enumerate(found):
        same(answer, alone[turn % 5])


@pytest.mark.parametrize("change", CHANGES)
def test_other_shapes_and_types_are_refused(engine: Engine, images: NDArray[np.uint8], change: Change) -> None:
    with pytest.raises(InputError, match=r"takes uint8 images \[N, 64, 96, 3\], not"):
        engine.run(change(images))


def test_unknown_devices_and_thread_counts_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="unknown device 'gpu'; choose one of auto, cpu, cuda"):
        Engine(bundle, device="gpu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1, not 0"):
        Engine(bundle, device="cpu", threads=0)


@pytest.mark.skipif(has_nvidia_driver(), reason="CUDA may work here")
def test_cuda_is_never_replaced_silently(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match="choose the device cpu"):
        Engine(bundle, device="cuda")
    assert Engine(bundle, device="auto").device == "cpu"
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(not has_nvidia_driver(), reason="needs an NVIDIA device")
def test_cuda_gives_the_answers_of_the_cpu(bundle: Bundle, engine: Engine, images: NDArray[np.uint8]) -> None:
    on_cuda = Engine(bundle, device="cuda")
    assert on_cuda.device == "cuda" and Engine(bundle).device == "cuda"
    found, expected = on_cuda.run(images), engine.run(images)
    np.testing.assert_allclose(found.log_probability, expected.log_probability, atol=1e-3)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-2)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\xff" * 1000, "half"])
def test_a_damaged_graph_is_a_bundle_error(
    bundle: Bundle, tmp_path: Path, content: bytes | str, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.directory, copy)
    file = copy / "model.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if isinstance(content, str) else content)
    with pytest.raises(BundleError, match="not a graph that onnxruntime can load"):
        Engine(Bundle(copy, bundle.manifest), device="cpu")
    assert capfd.readouterr().out == ""


def test_a_graph_that_differs_from_its_manifest_is_refused(bundle: Bundle) -> None:
    graph = bundle.manifest.graph.model_copy(update={"top_k": bundle.manifest.graph.top_k - 1})
    with pytest.raises(BundleError, match=r"'evidence_\w+' is tensor.* but the manifest says"):
        Engine(Bundle(bundle.directory, bundle.manifest.model_copy(update={"graph": graph})), device="cpu")
    rule = bundle.manifest.input.model_copy(update={"height": 65})
    with pytest.raises(BundleError, match="'image' is tensor"):
        Engine(Bundle(bundle.directory, bundle.manifest.model_copy(update={"input": rule})), device="cpu")


def test_a_graph_that_does_not_end_is_ended_after_its_time(
    tiny_bundle: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    endless = Engine(read_bundle(endless_bundle(tiny_bundle, tmp_path / "endless")), device="cpu", threads=1)
    with pytest.raises(DeviceError, match=r"did not end within 0\.2 seconds on cpu for 5 images"):
        endless.run(images, seconds=0.2)


def test_a_limit_of_time_changes_no_answer(engine: Engine, images: NDArray[np.uint8]) -> None:
    same(engine.run(images, seconds=60), engine.run(images))
