"""The cosine, from run to prediction: both targets pass the parity gate and say it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import protoserve
from export.bundling import export_bundle
from export.targets.onnx_files import run_onnx
from export.targets.torch_files import run_torchscript
from protoserve.networks.model_file import load_network
from protoserve.run.folder import open_run
from tests.bundles import make_run

RUNTIMES = {"onnx": run_onnx, "torchscript": run_torchscript}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return make_run(tmp_path_factory.mktemp("runs") / "cosine", similarity="cosine")


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory: pytest.TempPathFactory):
    return export_bundle(open_run(run), tmp_path_factory.mktemp("bundles") / "cosine", tuple(RUNTIMES))


@pytest.mark.parametrize("target", RUNTIMES)
def test_similarities_are_the_greatest_cosines_in_double_precision(run, bundle, target) -> None:
    pictures = np.load(run / "samples.npy")
    outputs = RUNTIMES[target](bundle.file(target))(pictures)
    network, _, _ = load_network(run / "model.pt")
    with torch.inference_mode():
        # Before the cells are brought to unit length.
        latent = network.add_on(network.features(torch.from_numpy(pictures))).double().flatten(2).numpy()
    prototypes = network.head.prototypes.detach().double().numpy()
    cosine = np.einsum("pd,ndc->npc", prototypes, latent) / np.linalg.norm(latent, axis=1)[:, None]
    cosine /= np.linalg.norm(prototypes, axis=1)[None, :, None]
    np.testing.assert_allclose(outputs["similarity"], cosine.max(2), atol=1e-5)
    # Picture number i of the samples is the source image of prototype i.
    for record in bundle.manifest.prototypes:
        assert outputs["similarity"][record.id, record.id] == pytest.approx(1.0, abs=1e-6)
        row, column = record.source_cell
        assert outputs["cell"][record.id, record.id] == row * bundle.manifest.graph.columns + column


def test_the_manifest_says_cosine_and_evidence_adds_up(bundle, photograph: Path) -> None:
    assert bundle.manifest.graph.similarity == "cosine"
    assert json.loads((bundle.directory / "parity.json").read_text()).keys() == RUNTIMES.keys()
    model = protoserve.load(bundle)
    limit = bundle.manifest.graph.top_k
    for level in model.predict(photograph, top_k=limit, maps=True).levels:
        for evidence in level.evidence:
            assert -1 - 1e-5 <= evidence.similarity <= 1 + 1e-5
            assert evidence.contribution == pytest.approx(evidence.similarity * evidence.weight, abs=1e-5)
            assert np.max(evidence.map) == pytest.approx(evidence.similarity, abs=1e-5)
        if len(level.evidence) < limit and level.logit is not None:
            assert sum(one.contribution for one in level.evidence) == pytest.approx(level.logit, abs=1e-4)
