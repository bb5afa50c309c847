"""The target for Intel's runtime: OpenVINO's intermediate representation, an .xml file and a .bin file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity import Fitter, Runtime
from export.resizing import FITTED
from protoserve.errors import MissingExtraError
from protoserve.graph_signature import INPUT, OUTPUT_NAMES


def write_openvino(source: Path, file: Path, metadata: dict[str, str]) -> None:
    """Convert the ONNX file `source`. Weights stay float32; `metadata` go into the .xml under `rt_info`.

    Raises MissingExtraError if OpenVINO is not installed.
    """
    openvino = _openvino()
    model = openvino.Core().read_model(str(source))
    for name, text in metadata.items():
        model.set_rt_info(text, name)
    openvino.save_model(model, str(file), compress_to_fp16=False)


def run_openvino(file: Path) -> Runtime:
    """Open an OpenVINO file in OpenVINO on the CPU, in float32 even if the processor supports bfloat16."""
    compiled = _compiled(file)

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        outputs = compiled({INPUT: pictures})
        return {name: np.array(outputs[name]) for name in OUTPUT_NAMES}

    return run


def fit_openvino(file: Path) -> Fitter:
    """Open the ONNX file of the resizing part in OpenVINO, which rounds a few weights, and so a few pixels,
    differently."""
    compiled = _compiled(file)

    def run(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(compiled({INPUT: picture})[FITTED])

    return run


def _compiled(file: Path) -> Any:
    return _openvino().Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _openvino() -> Any:
    # `import openvino` itself reports to Intel's account at an analytics host. It has no variable against that, but
    # works without the package that reports.
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("the target openvino", "targets") from error
    return openvino
