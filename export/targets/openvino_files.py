"""The target for Intel's runtime: OpenVINO's intermediate representation, an .xml file with its .bin beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity import Fitter, Runtime
from export.resizing import FITTED
from protoserve.errors import MissingExtraError
from protoserve.graph_signature import INPUT, OUTPUT_NAMES


def write_openvino(source: Path, file: Path, metadata: dict[str, str]) -> None:
    """Convert the ONNX file `source`; weights stay float32, `metadata` go into the .xml under `rt_info`.

    Raises MissingExtraError where OpenVINO is not installed.
    """
    openvino = _openvino()
    # Not its convert_model, which reports each use to Intel.
    model = openvino.Core().read_model(str(source))
    for name, text in metadata.items():
        model.set_rt_info(text, name)
    openvino.save_model(model, str(file), compress_to_fp16=False)


def run_openvino(file: Path) -> Runtime:
    """An OpenVINO file on the CPU, computing in float32 also where the processor offers bfloat16."""
    compiled = _compiled(file)

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        found = compiled({INPUT: pictures})
        return {name: np.array(found[name]) for name in OUTPUT_NAMES}

    return run


def fit_openvino(file: Path) -> Fitter:
    """An ONNX file that resizes, by OpenVINO: a few of its weights are one off, and so are a few grey levels."""
    compiled = _compiled(file)

    def run(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(compiled({INPUT: picture})[FITTED])

    return run


def _compiled(file: Path) -> Any:
    return _openvino().Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("the target openvino", "targets") from error
    return openvino
