"""The routed graph's file in onnxruntime, beside the full one."""

import numpy as np
import pytest
import torch

from export.graph import RoutedGraph, write_onnx
from protoserve.bundle import read_bundle
from protoserve.engine import Engine
from protoserve.errors import BundleError, InputError
from protoserve.networks.checkpoint import load_network
from protoserve.routed import RoutedEngine


@pytest.fixture(scope="module")
def files(tiny_run, tiny_bundle, tmp_path_factory):
    network, _, _ = load_network(tiny_run / "model.pt")
    samples = np.load(tiny_run / "samples.npy")
    routed = tmp_path_factory.mktemp("routed") / "routed.onnx"
    graph = RoutedGraph(network, min(10, network.head.top_k_limit), 1, trunk=0).eval()
    write_onnx(graph, torch.from_numpy(samples[:2]), routed, {})
    return routed, read_bundle(tiny_bundle), samples


@pytest.mark.parametrize("batch", [1, 5])
def test_routed_or_not_the_answer_is_the_full_graphs(files, batch):
    routed, bundle, samples = files
    engine, full = RoutedEngine(routed, bundle.file("onnx")), Engine(bundle, device="cpu")
    for start in range(0, len(samples), batch):
        images = samples[start : start + batch]
        found, expected = engine.run(images), full.run(images)
        np.testing.assert_array_equal(found.path, expected.path)
        np.testing.assert_array_equal(found.evidence_prototype, expected.evidence_prototype)
        np.testing.assert_allclose(found.evidence_contribution, expected.evidence_contribution, atol=1e-4)
        np.testing.assert_allclose(found.evidence_map, expected.evidence_map, atol=1e-3)
        alive = expected.path >= 0
        logarithms = np.take_along_axis(expected.log_probability, np.maximum(expected.path, 0), axis=1)
        np.testing.assert_allclose(found.path_log_probability[alive], logarithms[alive], atol=1e-4)


def test_what_is_no_routed_graph_or_no_image_is_said(files):
    routed, bundle, samples = files
    with pytest.raises(BundleError, match="has no output 'certain'; export it again"):
        RoutedEngine(bundle.file("onnx"), bundle.file("onnx"))
    with pytest.raises(InputError, match="not float32"):
        RoutedEngine(routed, bundle.file("onnx")).run(samples.astype(np.float32))
