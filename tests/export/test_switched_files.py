"""Which files of a bundle can be changed without the network, and with what options they were exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.records import read_parity
from export.sources import EdgeOptions
from export.switched_files import check_files, options_of
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError
from tests.bundles import older_bundle


def with_targets(bundle: Bundle, *targets: str) -> Bundle:
    files = {target: bundle.manifest.files[target] for target in targets}
    return Bundle(bundle.directory, bundle.manifest.model_copy(update={"files": files}))


@pytest.mark.parametrize("target", ["onnx-routed", "torchscript", "torch-export", "executorch"])
def test_a_target_that_needs_the_network_is_named_with_the_cure(edge: Bundle, target: str) -> None:
    with pytest.raises(InputError, match=rf"its target {target} can't be changed .*--run RUN.*--drop {target}"):
        check_files(with_targets(edge, "onnx", "ort", target))


def test_all_that_comes_from_onnx_can_be_made(edge: Bundle) -> None:
    check_files(with_targets(edge, "onnx", "onnx-edge", "onnx-fp16", "onnx-int8", "ort", "openvino"))


def test_a_converted_target_needs_an_onnx_file_with_its_options(resizing: Bundle) -> None:
    check_files(with_targets(resizing, "onnx", "onnx-edge", "openvino"))
    with pytest.raises(InputError, match="its target openvino can't be changed"):
        check_files(with_targets(resizing, "onnx", "openvino"))


def test_an_older_graph_needs_the_run(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"an older version.*--run RUN"):
        check_files(older_bundle(read_bundle(tiny_bundle), tmp_path / "older"))


def test_options_are_those_of_the_export(edge: Bundle, resizing: Bundle, small: Bundle) -> None:
    def options(bundle: Bundle) -> dict[str, EdgeOptions]:
        return {target: options_of(target, report) for target, report in read_parity(bundle.directory).items()}

    assert options(edge)["openvino"] == EdgeOptions() and options(edge)["executorch"] == EdgeOptions(batch=1)
    assert options(resizing)["onnx"] == EdgeOptions() and options(resizing)["openvino"] == EdgeOptions(resize=True)
    assert options(small)["onnx-edge"] == options(small)["executorch"] == EdgeOptions(batch=2)
