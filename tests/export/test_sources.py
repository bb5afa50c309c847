"""Sizes on the command line, the options of hosts other than the service, and the texts in their files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from export.sources import EdgeOptions, file_metadata, parse_size
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError


@pytest.mark.parametrize(("text", "size"), [("160", (160, 160)), ("160x224", (160, 224)), ("16X4096", (16, 4096))])
def test_a_size_is_one_number_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "15", "4097", "160x", "160x224x3", "-160", "1.5"])
def test_another_text_is_not_a_size(text: str) -> None:
    with pytest.raises(InputError, match="--image-size"):
        parse_size(text)


def test_a_graph_that_resizes_takes_one_picture_at_a_time() -> None:
    assert EdgeOptions().batches is None
    assert EdgeOptions(batch=8).batches == 8
    assert EdgeOptions(batch=8, resize=True).batches == 1


def test_the_texts_in_a_file_describe_the_bundle_and_the_inputs(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    texts = file_metadata(manifest, weights, "onnx-edge", "float32", EdgeOptions(batch=2))
    assert texts["nodes"].splitlines() == list(read_bundle(tiny_bundle).taxonomy.names)
    inputs = {"target": "onnx-edge", "precision": "float32", "batch": 2, "resize_in_graph": False}
    assert json.loads(texts["options"]) == inputs
    stored = json.loads(texts["protoserve"])
    digest = hashlib.sha256(b"weights" + manifest.model_dump_json().encode()).hexdigest()
    assert stored == {**json.loads(manifest.model_dump_json()), "version": f"sha256:{digest}"}


def test_other_weights_or_another_manifest_are_another_version(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    (tmp_path / "one.pt").write_bytes(b"one")
    (tmp_path / "two.pt").write_bytes(b"two")
    renamed = manifest.model_copy(update={"name": "another"})
    versions = [
        json.loads(file_metadata(described, tmp_path / file, "onnx", "float32", EdgeOptions())["protoserve"])["version"]
        for described, file in ((manifest, "one.pt"), (manifest, "two.pt"), (renamed, "one.pt"), (manifest, "one.pt"))
    ]
    assert len(set(versions)) == 3 and versions[0] == versions[3]
