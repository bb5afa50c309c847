"""The routed graph in onnxruntime, and the full graph where its certificate does not hold: one answer of both."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.graph import ExplainedGraph, RoutedGraph, write_onnx
from export.targets.onnx_files import run_onnx
from protoserve.errors import BundleError, InputError
from protoserve.graph_signature import ROUTED_OUTPUT_NAMES, named_arrays
from protoserve.inference.routed_engine import RoutedEngine, RoutedOutputs
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.taxonomy import Taxonomy
from tests.protoserve.inference.wrong_images import CHANGES, Change

TOP_K = 4


class Graphs(NamedTuple):
    """Two graphs of one network, and images for them, uint8 [N, 64, 96, 3]."""

    routed: Path
    full: Path
    images: NDArray[np.uint8]


@pytest.fixture(scope="module")
def graphs(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The run's backbone under a head over a tree with several inner nodes, of which the routed graph expands one."""
    network, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    images = np.load(tiny_run / "samples.npy")
    tree = Taxonomy.from_paths([f"{a}/{b}" for a in range(4) for b in range(2 + a % 2)] + ["4"])
    torch.manual_seed(0)
    head = PrototypeHead(tree, prototype_children(tree, "hierarchical", 2), network.head.prototypes.shape[1])
    with torch.inference_mode():
        cells = network.latent(network.features(torch.from_numpy(images))).flatten(2).transpose(1, 2).flatten(0, 1)
        head.prototypes.copy_(cells[torch.randint(len(cells), (len(head.grouping.prototype_child),))])
        # So weak that some pictures' best leaves do not stand out.
        head.weight.copy_(0.05 * torch.randn_like(head.weight))
        head.centre.copy_(head.vectors().mean(0))
    network.head = head.eval()
    folder, example = tmp_path_factory.mktemp("routed"), torch.from_numpy(images[:2])
    write_onnx(RoutedGraph(network, TOP_K, 1, trunk=0).eval(), example, folder / "routed.onnx", {})
    write_onnx(ExplainedGraph(network, TOP_K, example).eval(), example, folder / "full.onnx", {})
    return Graphs(folder / "routed.onnx", folder / "full.onnx", images)


@pytest.fixture(scope="module")
def engine(graphs: Graphs) -> RoutedEngine:
    return RoutedEngine(graphs.routed, graphs.full, threads=1)


@pytest.fixture(scope="module")
def answer(graphs: Graphs, engine: RoutedEngine) -> RoutedOutputs:
    return engine.run(graphs.images)


def test_some_of_the_pictures_need_the_full_graph_and_some_do_not(answer: RoutedOutputs) -> None:
    assert set(answer.certain.tolist()) == {True, False}


@pytest.mark.parametrize("batch", [1, 5])
def test_routed_or_not_the_answer_is_the_full_graphs(graphs: Graphs, engine: RoutedEngine, batch: int) -> None:
    run = run_onnx(graphs.full)
    for start in range(0, len(graphs.images), batch):
        images = graphs.images[start : start + batch]
        found, expected = engine.run(images), run(images)
        np.testing.assert_array_equal(found.path, expected["path"])
        np.testing.assert_array_equal(found.evidence_prototype, expected["evidence_prototype"])
        np.testing.assert_array_equal(found.evidence_cell, expected["evidence_cell"])
        for name in ("similarity", "weight", "contribution", "map"):
            values = getattr(found, f"evidence_{name}")
            np.testing.assert_allclose(values, expected[f"evidence_{name}"], atol=1e-3, err_msg=name)
        alive = expected["path"] >= 0
        for name in ("log_probability", "logit"):
            along = np.take_along_axis(expected[name], np.maximum(expected["path"], 0), axis=1)
            np.testing.assert_allclose(getattr(found, f"path_{name}")[alive], along[alive], atol=1e-3)
            assert not getattr(found, f"path_{name}")[~alive].any()


def test_only_images_without_a_certificate_reach_the_full_graph(
    graphs: Graphs, answer: RoutedOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = RoutedEngine(graphs.routed, graphs.full, threads=1)
    seen: list[NDArray[np.uint8]] = []
    full = engine.full

    class Watched:
        def run(self, names: list[str], inputs: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.generic]]:
            seen.append(inputs["image"])
            outputs: list[NDArray[np.generic]] = full.run(names, inputs)
            return outputs

    monkeypatch.setattr(engine, "full", Watched())
    engine.run(graphs.images)
    np.testing.assert_array_equal(np.concatenate(seen), graphs.images[~answer.certain])
    seen.clear()
    engine.run(graphs.images[answer.certain])
    assert seen == []


def test_an_image_gets_the_same_answer_in_any_order(
    graphs: Graphs, engine: RoutedEngine, answer: RoutedOutputs
) -> None:
    backwards = engine.run(graphs.images[::-1])
    for name in ROUTED_OUTPUT_NAMES:
        turned = getattr(backwards, name)[::-1]
        np.testing.assert_allclose(turned, getattr(answer, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_whole_answer_is_the_full_graphs(graphs: Graphs, engine: RoutedEngine) -> None:
    expected = run_onnx(graphs.full)(graphs.images[:3])
    found = named_arrays(engine.whole(graphs.images[:3]))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_outputs_have_the_declared_types(answer: RoutedOutputs) -> None:
    assert answer.certain.dtype == np.bool_
    for name in ("path", "evidence_prototype", "evidence_cell"):
        assert getattr(answer, name).dtype == np.int64, name
    for name in ("path_log_probability", "path_logit", "evidence_contribution", "evidence_map"):
        assert getattr(answer, name).dtype == np.float32, name


def test_a_full_graph_in_place_of_a_routed_one_is_refused(graphs: Graphs) -> None:
    with pytest.raises(BundleError, match="has no output 'certain'; export the bundle again"):
        RoutedEngine(graphs.full, graphs.full)
    with pytest.raises(BundleError, match="has no output 'log_probability'; export the bundle again"):
        RoutedEngine(graphs.routed, graphs.routed)


def test_a_file_that_is_not_a_graph_is_refused(graphs: Graphs, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: not a graph that onnxruntime can load"):
        RoutedEngine(graphs.routed, tmp_path / "model.onnx")


@pytest.mark.parametrize("change", CHANGES)
def test_other_shapes_and_types_are_refused(graphs: Graphs, engine: RoutedEngine, change: Change) -> None:
    with pytest.raises(InputError, match=r"takes uint8 images \[batch, 64, 96, 3\], not"):
        engine.run(change(graphs.images))
