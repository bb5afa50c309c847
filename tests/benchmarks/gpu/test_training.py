"""Steps of training are timed in several precisions, and what can't run is named."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import training
from training.features.precision import Learning


def test_precisions_are_compared_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU's float16 on a CPU that has no kernels for it stands for all that can't run.
    monkeypatch.setitem(training.SIDES, "broken", Learning(precision="float32", compile=True))
    monkeypatch.setattr("training.features.precision.shutil.which", lambda _: None)
    rows, missing = training.timed("squeezenet1_1", torch.device("cpu"), 32, (2,), 1, ("float32", "bfloat16", "broken"))
    assert [row["side"] for row in rows] == ["float32", "bfloat16"]
    first, half = rows
    assert first["of_first"] == 1.0 and first["difference"] == 0.0
    # bfloat16 keeps 8 bits of the mantissa.
    assert 0.0 < half["difference"] < 0.1
    assert "no C++ compiler" in missing["broken"]
