"""Without a GPU, the benchmark says so; its table names what could not be measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import __main__ as command


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "bundle", "data"])
    assert command.main() == 2
    assert "PyTorch finds no CUDA GPU here" in capsys.readouterr().err


def test_the_table_has_every_row_and_every_gap() -> None:
    machine = {"processor": "CPU", "gpu": "GPU", "cores": 2, "python": "3.11", "versions": {"torch": "2"}}
    text = command.table(
        {
            "machine": machine,
            "bundle": "the recipe rendered",
            "images": 8,
            "answers": [{"side": "CUDA", "batch": 32, "ms": 64.0, "of_cpu": 0.125}],
            "answers_missing": {"TensorRT": "no libnvinfer"},
            "agreement": {
                "CUDA": {"path": 1.0, "first_evidence": 0.9875, "probability": 2e-5, "contribution": 1e-4},
            },
            "training": {
                "resnet50": {
                    "rows": [{"side": "bfloat16", "batch": 32, "ms": 5.0, "of_first": 0.4, "difference": 0.01}],
                    "missing": {"bfloat16, compiled": "there is no triton"},
                }
            },
        }
    )
    assert "| CUDA | 32 | 0.125 | 2.000 |" in text
    assert "| CUDA | 100.00% | 98.75% | 2.0e-05 | 1.0e-04 |" in text
    assert "| resnet50 | bfloat16 | 32 | 0.400 | 1.0e-02 |" in text
    assert "Not measured: TensorRT (no libnvinfer)." in text
    assert "Not measured: bfloat16, compiled (there is no triton)." in text
