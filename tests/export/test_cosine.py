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
from protoserve.bundle.folder import Bundle
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import open_run
from tests.bundles import RunFactory

RUNTIMES = {"onnx": run_onnx, "torchscript": run_torchscript}


@pytest.fixture(scope="module")
def cosine_run(run: RunFactory) -> Path:
    return run("cosine", similarity="cosine")


@pytest.fixture(scope="module")
def cosine_bundle(cosine_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(open_run(cosine_run), tmp_path_factory.mktemp("bundles") / "cosine", tuple(RUNTIMES))


@pytest.mark.parametrize("target", RUNTIMES)
def test_similarities_are_the_greatest_cosines_in_double_precision(
    cosine_run: Path, cosine_bundle: Bundle, target: str
) -> None:
    pictures = np.load(cosine_run / "samples.npy")
    outputs = RUNTIMES[target](cosine_bundle.file(target))(pictures)
    network, _, _ = load_network(cosine_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    with torch.inference_mode():
        # Before the cells are brought to unit length.
        latent = network.add_on(network.features(torch.from_numpy(pictures))).double().flatten(2).numpy()
    prototypes = network.head.prototypes.detach().double().numpy()
    cosine = np.einsum("pd,ndc->npc", prototypes, latent) / np.linalg.norm(latent, axis=1)[:, None]
    cosine /= np.linalg.norm(prototypes, axis=1)[None, :, None]
    np.testing.assert_allclose(outputs["similarity"], cosine.max(2), atol=1e-5)
    # Picture number i of the samples is the source image of prototype i.
    for record in cosine_bundle.manifest.prototypes:
        assert outputs["similarity"][record.id, record.id] == pytest.approx(1.0, abs=1e-6)
        row, column = record.source_cell
        assert outputs["cell"][record.id, record.id] == row * cosine_bundle.manifest.graph.columns + column


def test_the_manifest_says_cosine_and_evidence_adds_up(cosine_bundle: Bundle, photograph: Path) -> None:
    assert cosine_bundle.manifest.graph.similarity == "cosine"
    assert json.loads((cosine_bundle.directory / "parity.json").read_text()).keys() == RUNTIMES.keys()
    model = protoserve.load(cosine_bundle)
    limit = cosine_bundle.manifest.graph.top_k
    for level in model.predict(photograph, top_k=limit, maps=True).levels:
        for evidence in level.evidence:
            assert -1 - 1e-5 <= evidence.similarity <= 1 + 1e-5
            assert evidence.contribution == pytest.approx(evidence.similarity * evidence.weight, abs=1e-5)
            assert np.max(np.asarray(evidence.map)) == pytest.approx(evidence.similarity, abs=1e-5)
        if len(level.evidence) < limit and level.logit is not None:
            assert sum(one.contribution for one in level.evidence) == pytest.approx(level.logit, abs=1e-4)
