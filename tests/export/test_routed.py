"""The routed graph's file in onnxruntime, beside the full one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.graph import ExplainedGraph, RoutedGraph, write_onnx
from export.targets.onnx_files import run_onnx
from protoserve.errors import BundleError, InputError
from protoserve.inference.routed_engine import RoutedEngine
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.model_file import load_network
from protoserve.taxonomy import Taxonomy

TOP_K = 4


@pytest.fixture(scope="module")
def files(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """(routed, full, pictures): the run's backbone under a head over a tree with several inner nodes to leave out."""
    network, _, _ = load_network(tiny_run / "model.pt")
    samples = np.load(tiny_run / "samples.npy")
    tree = Taxonomy.from_paths([f"{a}/{b}" for a in range(4) for b in range(2 + a % 2)] + ["4"])
    torch.manual_seed(0)
    head = PrototypeHead(tree, prototype_children(tree, "hierarchical", 2), network.head.prototypes.shape[1])
    with torch.inference_mode():
        cells = network.latent(network.features(torch.from_numpy(samples))).flatten(2).transpose(1, 2).flatten(0, 1)
        head.prototypes.copy_(cells[torch.randint(len(cells), (len(head.grouping.prototype_child),))])
        # So weak that some pictures' best leaves do not stand out.
        head.weight.copy_(0.05 * torch.randn_like(head.weight))
        head.centre.copy_(head.vectors().mean(0))
    network.head = head.eval()
    folder, example = tmp_path_factory.mktemp("routed"), torch.from_numpy(samples[:2])
    write_onnx(RoutedGraph(network, TOP_K, 1, trunk=0).eval(), example, folder / "routed.onnx", {})
    write_onnx(ExplainedGraph(network, TOP_K, example).eval(), example, folder / "full.onnx", {})
    return folder / "routed.onnx", folder / "full.onnx", samples


def test_some_of_the_pictures_need_the_full_graph_and_some_do_not(files) -> None:
    routed, full, samples = files
    assert set(RoutedEngine(routed, full).run(samples).certain.tolist()) == {True, False}


@pytest.mark.parametrize("batch", [1, 5])
def test_routed_or_not_the_answer_is_the_full_graphs(files, batch: int) -> None:
    routed, full, samples = files
    engine, run = RoutedEngine(routed, full), run_onnx(full)
    for start in range(0, len(samples), batch):
        images = samples[start : start + batch]
        found, expected = engine.run(images), run(images)
        np.testing.assert_array_equal(found.path, expected["path"])
        np.testing.assert_array_equal(found.evidence_prototype, expected["evidence_prototype"])
        np.testing.assert_allclose(found.evidence_contribution, expected["evidence_contribution"], atol=1e-3)
        np.testing.assert_allclose(found.evidence_map, expected["evidence_map"], atol=1e-3)
        alive = expected["path"] >= 0
        for name in ("log_probability", "logit"):
            along = np.take_along_axis(expected[name], np.maximum(expected["path"], 0), axis=1)
            np.testing.assert_allclose(getattr(found, f"path_{name}")[alive], along[alive], atol=1e-3)


def test_what_is_no_routed_graph_or_no_image_is_said(files) -> None:
    routed, full, samples = files
    with pytest.raises(BundleError, match="has no output 'certain'; export the bundle again"):
        RoutedEngine(full, full)
    with pytest.raises(InputError, match="not float32"):
        RoutedEngine(routed, full).run(samples.astype(np.float32))
