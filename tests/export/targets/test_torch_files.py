"""The files for libtorch: their content and their outputs."""

import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.targets import torch_files
from protoserve.bundle.folder import Bundle
from protoserve.graph_signature import OUTPUT_NAMES


def test_the_torch_export_file_holds_no_pickle(edge: Bundle) -> None:
    with zipfile.ZipFile(edge.file("torch-export")) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))], names


def test_both_files_answer_alike(edge: Bundle, expected: tuple[NDArray[np.uint8], Mapping[str, NDArray[Any]]]) -> None:
    pictures, _ = expected
    script = torch_files.run_torchscript(edge.file("torchscript"))(pictures)
    program = torch_files.run_torch_export(edge.file("torch-export"))(pictures)
    assert list(script) == list(program) == list(OUTPUT_NAMES)
    np.testing.assert_allclose(script["logit"], program["logit"], atol=1e-4)
    np.testing.assert_array_equal(script["path"], program["path"])
