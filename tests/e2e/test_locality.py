"""With tiles or a limited receptive field, evidence depends on no pixel outside its box."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.targets.onnx_files import run_onnx
from export.targets.torch_files import run_torchscript
from protoserve.bundle.folder import read_bundle
from tests.bundles import BundleFactory, RunOptions
from tests.locality import Sent, changes_at_evidence

LONG = pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes half a minute: make test-faults")
RUNTIMES = {"onnx": run_onnx, "torchscript": run_torchscript}
# Pictures of each data set; nine prototypes compete at the root.
PICTURES = 56


def sent(files: list[Path]) -> list[Sent]:
    """Pictures spread over these files, every other one cropped to another shape, in all orientations."""
    chosen = [files[number] for number in np.linspace(0, len(files) - 1, PICTURES).astype(int)]
    pictures = []
    for number, file in enumerate(chosen):
        with Image.open(file) as picture:
            upright = np.asarray(picture.convert("RGB"))
        height, width = upright.shape[:2]
        if number % 2:
            upright = upright[: height - (7 * number) % (height // 2), : width - (11 * number) % (width // 2)]
        pictures.append((np.ascontiguousarray(upright), number % 8 + 1))
    return pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Sent]:
    from training.rendered import render_dataset

    folder = Path(os.environ.get("PROTOSERVE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    photographs = sorted((folder / "grocery-store" / "test").rglob("*.jpg"))
    if not photographs:
        pytest.skip(f"there is no grocery-store in {folder}; PROTOSERVE_DATA names the folder that holds it")
    drawn = tmp_path_factory.mktemp("locality") / "data"
    render_dataset(drawn, per_leaf=4, size=96)
    return sent(sorted((drawn / "train").rglob("*.png"))) + sent(photographs)


@pytest.mark.parametrize("target", ["onnx", pytest.param("torchscript", marks=LONG)])
@pytest.mark.parametrize(
    "options", [{"tile": 32, "tile_step": 16}, {"receptive_field": 19}], ids=["tiles", "receptive-field"]
)
def test_a_thousand_pieces_of_evidence_stay_when_all_other_pixels_are_replaced(
    bundle: BundleFactory, pictures: list[Sent], target: str, options: RunOptions
) -> None:
    tiled = read_bundle(bundle("-".join(options), tuple(RUNTIMES), **options))
    changes = list(changes_at_evidence(tiled, RUNTIMES[target](tiled.file(target)), tiled.input, pictures))
    assert len(changes) >= 1000
    assert max(max(change) for change in changes) <= 1e-5
