"""The folder for browsers, and npm that is missing, slow or wrong. tests/e2e/test_browser.py runs the page."""

import base64
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from export.targets import web
from protoserve.errors import InputError


def test_web_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(InputError, match="install Node"):
        web.write_web(
            tmp_path / "model.onnx",
            tmp_path / "web" / "index.html",
            {"protoserve": "{}", "options": "{}"},
            tmp_path / "pictures",
        )


def test_an_npm_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexec sleep 60\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    monkeypatch.setattr(web, "TIMEOUT", 1)
    with pytest.raises(InputError, match=r"did not fetch onnxruntime-web@.+ within 1 s"):
        web.fetch_runtime(tmp_path)


def npm_that_packs(folder: Path, contents: dict[str, bytes]) -> Path:
    """An npm that packs these files, whatever its arguments."""
    package = folder / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\ncp "{package}" "$5"\n')
    npm.chmod(0o755)
    return npm


def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = npm_that_packs(tmp_path, {"ort.wasm.bundle.min.mjs": b"changed"})
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    with pytest.raises(InputError, match="differs from the published one"):
        web.fetch_runtime(tmp_path)
    assert not (tmp_path / "ort.wasm.bundle.min.mjs").exists()


def test_the_folder_holds_the_graph_the_page_the_runtime_and_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = npm_that_packs(tmp_path, {name: name.encode() for name in web.RUNTIME_FILES})
    digest = base64.b64encode(hashlib.sha512((tmp_path / "package.tgz").read_bytes()).digest()).decode()
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    monkeypatch.setattr(web, "RUNTIME_SHA512", digest)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0000.webp").write_bytes(b"picture")
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    metadata = {"protoserve": '{"name": "tiny"}', "options": '{"batch": 1}', "nodes": ""}
    folder = tmp_path / "web"
    web.write_web(tmp_path / "graph.onnx", folder / "index.html", metadata, tmp_path / "pictures")
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert (folder / "prototypes" / "0000.webp").read_bytes() == b"picture"
    assert json.loads((folder / "model.json").read_text()) == {"manifest": {"name": "tiny"}, "options": {"batch": 1}}
    assert "page.mjs" in (folder / "index.html").read_text() and (folder / "page.mjs").is_file()
    for name in web.RUNTIME_FILES:
        assert (folder / name).read_bytes() == name.encode()
