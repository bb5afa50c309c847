"""Directions, smoothed cells and a hidden layer from run to prediction: both targets keep them, boxes show it all."""

import math
from pathlib import Path

import numpy as np
import pytest

import protoserve
from export.bundling import export_bundle
from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle
from protoserve.run.folder import open_run
from tests.bundles import RunFactory


@pytest.fixture(scope="module")
def sphere_run(run: RunFactory) -> Path:
    return run("sphere", latent="sphere", smoothing=3, hidden=20, zero=2.0)


@pytest.fixture(scope="module")
def sphere_bundle(sphere_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(open_run(sphere_run), tmp_path_factory.mktemp("bundles") / "sphere", ("onnx", "torchscript"))


@pytest.mark.parametrize("target", ["onnx", "torchscript"])
def test_a_source_image_meets_its_prototype_with_the_greatest_similarity(
    sphere_run: Path, sphere_bundle: Bundle, target: str
) -> None:
    graph = sphere_bundle.manifest.graph
    outputs = TARGETS[target].run(sphere_bundle.file(target))(np.load(sphere_run / "samples.npy"))
    assert graph.zero == 2.0
    greatest = math.log1p(1 / graph.epsilon) - math.log1p(1 / (2 + graph.epsilon))
    # Picture number i of the samples is the source image of prototype i.
    for record in sphere_bundle.manifest.prototypes:
        assert outputs["similarity"][record.id, record.id] == pytest.approx(greatest, abs=1e-3)
        row, column = record.source_cell
        assert outputs["cell"][record.id, record.id] == row * graph.columns + column


def test_boxes_cover_the_cells_that_were_smoothed(sphere_bundle: Bundle, photograph: Path) -> None:
    graph = sphere_bundle.manifest.graph
    assert graph.smoothing == 3
    prediction = protoserve.load(sphere_bundle).predict(photograph, top_k=1)
    boxes = [evidence.box for level in prediction.levels for evidence in level.evidence]
    assert boxes
    for left, top, right, bottom in boxes:
        # Three cells, or two at the border; a pixel for rounding.
        assert right - left >= 2 * prediction.image.width / graph.columns - 1
        assert bottom - top >= 2 * prediction.image.height / graph.rows - 1
