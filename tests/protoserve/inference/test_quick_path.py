"""The quick path: whatever a request asks for, the answer is that of the full graph alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.bundle.ensemble import ensemble_of
from protoserve.bundle.folder import MANIFEST, SUMS, Bundle, read_bundle, write_bundle, write_manifest
from protoserve.errors import BundleError, DeviceError, InputError
from protoserve.images.fitting import FittedImage
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.evidence import predictions
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.options import PredictOptions
from protoserve.inference.quick_path import open_quick_path
from protoserve.schema import Prediction


@pytest.fixture(scope="module")
def quick(routed_bundle: Path) -> Classifier:
    return load(routed_bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def full(routed_bundle: Path) -> Classifier:
    return load(routed_bundle, device="cpu", threads=1, routed="off")


@pytest.fixture(scope="module")
def fitted(full: Classifier, routed_bundle: Path) -> list[FittedImage]:
    """The run's own pictures, and noise of several kinds."""
    samples = np.load(routed_bundle.parent / "run" / "samples.npy")
    generator = np.random.default_rng(0)
    drawn = [
        np.kron(generator.integers(0, 255, (64 // side, 96 // side, 3)), np.ones((side, side, 1)))
        for side in (1, 4, 16, 32)
        for _ in range(6)
    ]
    return [full.fit(picture) for picture in [*samples, *np.array(drawn, dtype=np.uint8)]]


def stacked(fitted: Sequence[FittedImage]) -> NDArray[np.uint8]:
    return np.stack([image.array for image in fitted])


def answered(
    classifier: Classifier, fitted: Sequence[FittedImage], options: Sequence[PredictOptions]
) -> tuple[list[Prediction], list[str]]:
    """The answers of one batch with an option for each picture, and their routes."""
    resolved = [option.resolved(classifier.table) for option in options]
    outputs = classifier.outputs(stacked(fitted), resolved)
    found = [
        predictions(outputs.rows(index, index + 1), classifier.table, [image.geometry], option)[0]
        for index, (image, option) in enumerate(zip(fitted, resolved, strict=True))
    ]
    return found, [] if outputs.route is None else outputs.route.tolist()


def assert_same(found: Any, expected: Any, place: str = "answer") -> None:
    """Equal documents, up to the rounding of their numbers."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-4, rel=1e-3), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{place}.{index}")
    else:
        assert found == expected, place


ASKED: dict[str, PredictOptions] = {
    "nothing": PredictOptions(),
    "no alternatives": PredictOptions(alternatives=0, top_k=2),
    "all alternatives": PredictOptions(alternatives=100),
    "maps": PredictOptions(maps=True, top_k=6, alternatives=1),
    "precision": PredictOptions(precision=0.75),
    "contrast": PredictOptions(contrast="A/h/j"),
    "without": PredictOptions(without=[0, 3, 5, 17]),
    "allow": PredictOptions(allow=["A/B", "K"]),
    "deny": PredictOptions(deny=["A/B/C"]),
    "depth": PredictOptions(depth={"A": 2}),
    "prior": PredictOptions(prior={"N": 4.0}),
}


@pytest.mark.parametrize("asked", ASKED)
def test_every_request_is_answered_as_by_the_full_graph(
    asked: str, quick: Classifier, full: Classifier, fitted: list[FittedImage]
) -> None:
    options = [ASKED[asked]] * len(fitted)
    found, routes = answered(quick, fitted, options)
    expected, none = answered(full, fitted, options)
    assert none == []
    for image, pair in enumerate(zip(found, expected, strict=True)):
        assert_same(pair[0].model_dump(), pair[1].model_dump(), f"{image}: {routes[image]}")
    if ASKED[asked].resolved(full.table).needs_full_graph:
        assert set(routes) == {"asked"}
    else:
        assert "routed" in routes or asked == "all alternatives"
        assert set(routes) <= {"routed", "uncertain", "alternatives"}


def test_the_tree_is_known_and_unknown_and_every_certificate_fails_somewhere(
    quick: Classifier, fitted: list[FittedImage]
) -> None:
    found, routes = answered(quick, fitted, [PredictOptions()] * len(fitted))
    assert set(routes) == {"routed", "uncertain", "alternatives"}
    assert len({prediction.known_through_level for prediction in found}) > 2
    assert len({len(prediction.path) for prediction in found}) > 1
    sufficient = [level.sufficient for prediction in found for level in prediction.levels]
    assert any(sufficient) and None in sufficient


def test_a_batch_of_mixed_requests_gives_each_its_own_answer(
    quick: Classifier, full: Classifier, fitted: list[FittedImage]
) -> None:
    kinds = list(ASKED.values())
    options = [kinds[index % len(kinds)] for index in range(len(fitted))]
    found, routes = answered(quick, fitted, options)
    expected, _ = answered(full, fitted, options)
    assert set(routes) == {"routed", "asked", "uncertain", "alternatives"}
    for image, pair in enumerate(zip(found, expected, strict=True)):
        assert_same(pair[0].model_dump(), pair[1].model_dump(), f"{image}: {routes[image]}")


def test_the_full_graph_runs_on_what_is_left_alone(
    quick: Classifier, fitted: list[FittedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, options = stacked(fitted), [PredictOptions().resolved(quick.table)] * len(fitted)
    route = quick.outputs(images, options).route
    assert route is not None
    run, seen = quick.engine.run, []

    def watched(images: NDArray[np.uint8], **named: Any) -> Any:
        seen.append(images)
        return run(images, **named)

    monkeypatch.setattr(quick.engine, "run", watched)
    quick.outputs(images, options)
    np.testing.assert_array_equal(np.concatenate(seen), images[route != "routed"])
    seen.clear()
    certain = route == "routed"
    quick.outputs(images[certain], options[: int(certain.sum())])
    assert seen == []


def test_photographs_are_answered_as_by_the_full_graph(quick: Classifier, full: Classifier) -> None:
    folder = Path(os.environ.get("PROTOSERVE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    pictures = sorted((folder / "grocery-store").rglob("*.jpg"))[::150]
    if not pictures:
        pytest.skip(f"there is no grocery-store in {folder}; PROTOSERVE_DATA names the folder that holds it")
    fitted = [full.fit(picture) for picture in pictures]
    options = [PredictOptions()] * len(fitted)
    found, routes = answered(quick, fitted, options)
    for pair in zip(found, answered(full, fitted, options)[0], strict=True):
        assert_same(pair[0].model_dump(), pair[1].model_dump())
    assert "routed" in routes


def test_a_routed_graph_that_does_not_end_is_stopped(quick: Classifier, fitted: list[FittedImage]) -> None:
    assert quick.quick is not None
    with pytest.raises(DeviceError, match="did not end within 1e-06 seconds on cpu for 40 images"):
        quick.quick.run(np.resize(fitted[0].array, (40, *fitted[0].array.shape)), seconds=1e-6)


def changed(bundle: Bundle, directory: Path, graph: bytes) -> Bundle:
    """A copy of a bundle with another routed graph."""
    with write_bundle(directory) as draft:
        shutil.copytree(bundle.directory, draft, dirs_exist_ok=True)
        for name in (MANIFEST, SUMS):
            (draft / name).unlink()
        (draft / "model.routed.onnx").write_bytes(graph)
        write_manifest(draft, lambda version: bundle.manifest.model_copy(update={"version": version}))
    return read_bundle(directory)


def test_the_full_graph_answers_alone_where_there_is_no_routed_graph_to_use(
    routed_bundle: Path, tiny_bundle: Path, twin_bundle: Path, tmp_path: Path
) -> None:
    import onnx

    bundle = read_bundle(routed_bundle)
    table = EvidenceTable.of(bundle)
    assert open_quick_path(bundle, table, "cpu") is not None
    assert open_quick_path(bundle, table, "cuda") is None
    tiny = read_bundle(tiny_bundle)
    for other in (tiny, ensemble_of([tiny, read_bundle(twin_bundle)])):
        assert open_quick_path(other, EvidenceTable.of(other), "cpu") is None
    # One of an older version lacks the outputs of the search; another takes four pictures at a time.
    older, fixed = (onnx.load(bundle.file("onnx-routed")) for _ in range(2))
    del older.graph.output[-1]
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    for number, model in enumerate((older, fixed)):
        other = changed(bundle, tmp_path / str(number), model.SerializeToString())
        assert open_quick_path(other, EvidenceTable.of(other), "cpu") is None


def test_a_damaged_routed_graph_is_an_error(routed_bundle: Path, tmp_path: Path) -> None:
    bundle = changed(read_bundle(routed_bundle), tmp_path / "damaged", b"not a graph")
    with pytest.raises(BundleError, match=r"model\.routed\.onnx: not a graph that onnxruntime can load"):
        load(bundle, device="cpu")
    assert load(bundle, device="cpu", routed="off").quick is None


def test_other_values_of_routed_are_refused(routed_bundle: Path) -> None:
    with pytest.raises(InputError, match="routed must be auto or off, not 'on'"):
        load(routed_bundle, routed="on")  # type: ignore[arg-type]
