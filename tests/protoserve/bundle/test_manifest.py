"""The manifest: fields of older versions that it accepts, and fields that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protoserve.bundle.manifest import GraphRecord, Manifest

GRAPH: dict[str, Any] = {
    "rows": 2,
    "columns": 3,
    "prototypes": 4,
    "top_k": 1,
    "similarity": "log",
    "epsilon": 1e-4,
}


@pytest.fixture
def content(tiny_bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle, as stored."""
    stored: dict[str, Any] = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    return stored


def test_a_manifest_survives_being_written_and_read(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(content)
    assert json.loads(manifest.model_dump_json()) == content
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_older_manifests_call_smoothing_span_or_say_nothing() -> None:
    assert GraphRecord.model_validate(GRAPH | {"span": 3}).smoothing == 3
    assert GraphRecord.model_validate(GRAPH | {"smoothing": 3}).smoothing == 3
    assert GraphRecord.model_validate(GRAPH).smoothing == 1


def test_optional_fields_may_be_absent(content: dict[str, Any]) -> None:
    for name in ("weights", "temperature", "novelty", "metrics", "provenance"):
        content.pop(name, None)
    manifest = Manifest.model_validate(content)
    assert manifest.weights is None and manifest.novelty is None
    assert (manifest.temperature, manifest.left_out) == ({}, {})


def test_the_leaves_left_out_come_from_the_provenance(content: dict[str, Any]) -> None:
    content["provenance"]["left_out"] = {"Animal/Lion": "lions"}
    assert Manifest.model_validate(content).left_out == {"Animal/Lion": "lions"}


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"kind": "linear"}, ("kind",)),
        ({"prototype": []}, ("prototype",)),
        ({"input": {"height": 0, "width": 96, "resize": "stretch"}}, ("input", "height")),
    ],
)
def test_a_wrong_field_is_named(content: dict[str, Any], change: dict[str, Any], location: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        Manifest.model_validate(content | change)
    assert location in [error["loc"] for error in refused.value.errors()]
