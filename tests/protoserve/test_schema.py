"""The JSON contract stands alone: a client reads answers without numpy."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from protoserve.schema import EvidenceSource, Level


@pytest.mark.parametrize("module", ["protoserve.schema", "protoserve.client"])
def test_the_contract_needs_no_numpy(module: str) -> None:
    code = (
        "import importlib, sys\n"
        "for library in ('numpy', 'onnxruntime', 'PIL', 'torch'):\n"
        "    sys.modules[library] = None\n"
        f"importlib.import_module({module!r})"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_source_without_a_service_has_no_address() -> None:
    source = EvidenceSource(image="train/a.jpg", box=(0, 0, 8, 8))
    assert source.model_dump(mode="json") == {"image": "train/a.jpg", "box": [0, 0, 8, 8], "href": None}


def test_an_unknown_key_is_refused() -> None:
    level = {"level": 1, "node": "Fruit", "label": "Fruit", "probability": 0.5, "conditional": 0.5}
    assert Level.model_validate(level).known is None
    with pytest.raises(ValidationError, match="probabilty"):
        Level.model_validate({**level, "probabilty": 0.5})
