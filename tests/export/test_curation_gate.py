"""The gate of changed files: it lets the right one pass and stops files that are switched otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.curation_gate import PICTURES, check_switched, gate_pictures
from export.records import read_parity
from export.switched_files import change_file
from export.targets.onnx_files import run_onnx
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import ParityError


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


def changed(bundle: Bundle, folder: Path, off: list[int]) -> Path:
    file = folder / "changed.onnx"
    file.write_bytes(bundle.file("onnx").read_bytes())
    change_file(file, bundle, off)
    return file


def test_a_file_with_the_right_prototypes_off_passes(bundle: Bundle, tmp_path: Path) -> None:
    report = read_parity(bundle.directory)["onnx"]
    old, new = run_onnx(bundle.file("onnx")), run_onnx(changed(bundle, tmp_path, [2, 9]))
    found = check_switched(bundle, old, new, [2, 9], report)
    assert list(found.batches) == list(report.batches) and found.pictures == min(PICTURES, len(bundle.prototypes))
    for batch in found.batches.values():
        assert max(batch.worst_difference.values()) < 1e-4 and batch.agreement == {"path": 1.0}


@pytest.mark.parametrize("off", [[], [2], [2, 8], [2, 9, 10]])
def test_a_file_with_others_off_is_stopped(bundle: Bundle, tmp_path: Path, off: list[int]) -> None:
    old, new = run_onnx(bundle.file("onnx")), run_onnx(changed(bundle, tmp_path, off))
    with pytest.raises(ParityError, match=r"of a changed file differs by .*no bundle was written"):
        check_switched(bundle, old, new, [2, 9], read_parity(bundle.directory)["onnx"])


def test_the_pictures_are_the_prototypes_own_at_their_size(bundle: Bundle) -> None:
    pictures = gate_pictures(bundle)
    assert len(pictures) == min(PICTURES, len(bundle.prototypes))
    assert all(picture.shape == (90, 120, 3) for picture in pictures)
