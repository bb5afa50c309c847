"""The pictures of an answer: opened when somebody looks, and never those of another picture."""

from __future__ import annotations

import gc
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import protoserve
from protoserve.bundle.folder import read_bundle
from protoserve.images.patch_view import patch_view
from protoserve.inference.opened_pictures import read_patch
from protoserve.schema import Prediction


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> protoserve.Classifier:
    return protoserve.load(tiny_bundle, device="cpu")


def test_a_notebook_shows_the_file_while_it_is_the_same(
    model: protoserve.Classifier, photograph: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(photograph, tmp_path / "photo.jpg"))
    prediction = model.predict(file, top_k=1)
    assert prediction._repr_html_().count("<img") >= 2
    assert model.predict([file.read_bytes()], top_k=1)[0]._repr_html_().count("<img") >= 2
    Image.new("RGB", (20, 20)).save(file)
    assert "<img" not in prediction._repr_html_()
    file.unlink()
    assert "<img" not in prediction._repr_html_() and "score" in prediction._repr_html_()


def test_a_prediction_does_not_keep_pixels_alive(model: protoserve.Classifier) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    prediction = model.predict(pixels, top_k=1)
    assert "<img" in prediction._repr_html_()
    del pixels
    gc.collect()
    assert "<img" not in prediction._repr_html_()


def test_pictures_are_no_part_of_a_prediction(model: protoserve.Classifier, photograph: Path) -> None:
    prediction = model.predict(photograph, top_k=1)
    plain = Prediction.model_validate_json(prediction.model_dump_json())
    assert plain == prediction and "<img" not in plain._repr_html_()
    copied = pickle.loads(pickle.dumps(prediction))  # noqa: S301
    assert copied == prediction and "<img" not in copied._repr_html_()


def test_a_patch_is_a_close_view_of_the_training_patch(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    cells = bundle.manifest.graph.cells
    row, column = bundle.prototypes[1].source_cell
    expected = patch_view(bundle.read_picture(1), bundle.input, cells, row * cells.columns + column)
    assert read_patch(bundle, 1) == expected
    with Image.open(io.BytesIO(expected)) as picture:
        assert picture.width == picture.height


def test_without_the_bundle_s_folder_a_notebook_shows_the_picture_alone(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    prediction = protoserve.load(folder, device="cpu").predict(photograph, top_k=1)
    shutil.rmtree(folder / "prototypes")
    html = prediction._repr_html_()
    assert "no picture" in html and "--photograph" in html
