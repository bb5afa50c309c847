"""OpenVINO files: float32 weights, the resizing part, and a missing runtime."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.graph import write_onnx
from export.resizing import FITTED, Fit
from export.targets import openvino_files
from protoserve.bundle.folder import Bundle
from protoserve.errors import MissingExtraError
from protoserve.images.geometry import InputRule


def test_weights_stay_float32(edge: Bundle) -> None:
    file = edge.file("openvino")
    text = file.read_text()
    assert 'element_type="f32"' in text
    assert 'element_type="f16"' not in text


def test_pixels_are_within_a_grey_level_of_pytorch_s(tmp_path: Path) -> None:
    module = Fit(InputRule(height=20, width=30, resize="pad")).eval()
    example = torch.zeros((1, 27, 35, 3), dtype=torch.uint8)
    axes = {1: torch.export.Dim("height", min=2, max=999), 2: torch.export.Dim("width", min=2, max=999)}
    write_onnx(module, example, tmp_path / "fit.onnx", {}, dynamic=axes, outputs=[FITTED])
    picture = np.random.default_rng(0).integers(0, 256, (1, 61, 44, 3), dtype=np.uint8)
    pixels = openvino_files.fit_openvino(tmp_path / "fit.onnx")(picture)
    expected = module(torch.from_numpy(picture)).numpy()
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 20, 30, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"protoserve\[targets\]"):
        openvino_files.write_openvino(tmp_path / "model.onnx", tmp_path / "model.xml", {})
