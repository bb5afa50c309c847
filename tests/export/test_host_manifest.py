"""The part of the manifest that files hold."""

import hashlib
import json
from pathlib import Path

import numpy as np

from export.host_manifest import host_manifest, named_manifest
from protoserve.bundle.folder import read_bundle


def test_the_version_is_of_the_network_and_the_manifest(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    (tmp_path / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights" + manifest.model_dump_json().encode()).hexdigest()
    assert named_manifest(manifest, tmp_path / "model.pt").version == f"sha256:{digest}"


def test_a_host_finds_what_it_needs_by_the_number_of_a_prototype(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    whole = json.loads(bundle.manifest.model_dump_json())
    found = json.loads(json.dumps(host_manifest(bundle.manifest)))
    for name in ("name", "kind", "taxonomy", "input", "graph", "temperature"):
        assert found[name] == whole[name]
    np.testing.assert_allclose(list(found["prior"].values()), list(whole["prior"].values()), rtol=1e-8)
    assert not {"metrics", "provenance"} & found.keys()
    names = bundle.taxonomy.names
    for record in bundle.prototypes:
        columns = {name: column[record.id] for name, column in found["prototypes"].items()}
        assert names[columns.pop("child")] == record.child
        assert columns.pop("source_image") == record.source_image
        assert tuple(columns.pop("source_box")) == record.source_box
        assert record.usual is not None
        np.testing.assert_allclose(list(columns.values()), [record.weight, record.usual], rtol=1e-8)
    assert len(json.dumps(found)) < 0.6 * len(json.dumps(whole))
