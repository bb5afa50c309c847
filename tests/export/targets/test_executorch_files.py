"""ExecuTorch programs: their fixed memory, their metadata, and a missing runtime."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from export.targets import executorch_files
from export.targets.onnx_files import run_onnx
from protoserve.bundle.folder import Bundle
from protoserve.errors import MissingExtraError
from tests.export.stored import stored_in


def test_memory_is_planned_for_the_requested_batch(small: Bundle) -> None:
    pictures = np.random.default_rng(3).integers(0, 255, (2, 32, 48, 3), dtype=np.uint8)
    found = executorch_files.run_executorch(small.file("executorch"))(pictures)
    wanted = run_onnx(small.file("onnx"))(pictures)
    assert found["path"].shape[0] == 2 and (found["path"] == wanted["path"]).all()
    np.testing.assert_allclose(found["log_probability"], wanted["log_probability"], atol=1e-3, rtol=0)
    assert json.loads(stored_in("executorch", small.file("executorch"))["options"])["batch"] == 2


def test_another_batch_size_than_planned_is_refused(small: Bundle) -> None:
    with pytest.raises(RuntimeError):
        executorch_files.run_executorch(small.file("executorch"))(np.zeros((3, 32, 48, 3), dtype=np.uint8))


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(MissingExtraError, match=r"protoserve\[targets\]"):
        executorch_files.run_executorch(tmp_path / "model.pte")
