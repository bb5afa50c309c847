"""The target for browsers: a folder with the graph, a page, and onnxruntime's WebAssembly build."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from numpy.typing import NDArray

from export.parity import Runtime
from export.targets.onnx_files import run_onnx
from protoserve.bundle.manifest import Manifest
from protoserve.errors import InputError

# A release and the SHA-512 of its package, so that every page has the same files.
RUNTIME: Final = "onnxruntime-web@1.30.0"
RUNTIME_SHA512: Final = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The CPU build: the loader in one module, and the WebAssembly.
RUNTIME_FILES: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Seconds, enough for 30 MB over a slow connection.
TIMEOUT: Final = 600
PAGE_FILES: Final = {
    "page.html": "index.html",
    "page.mjs": "page.mjs",
    "contrast.mjs": "contrast.mjs",
    "geometry.mjs": "geometry.mjs",
}
# The last layers' weights as float32, little-endian, in the order of the bundle's `weights.npy`.
WEIGHTS: Final = "weights.bin"
GRAPH: Final = "model.onnx"
SIDECAR: Final = "model.json"


def write_web(source: Path, file: Path, document: str, pictures: Path, weights: NDArray[np.float32]) -> None:
    """Write the page `file` and its folder: the ONNX file `source`, which takes pictures of any size, the `document` of
    `web_document`, the prototypes' `pictures`, and the last layers' `weights` (see `export.bundling.head_weights`),
    with which the page says why not another class.

    Raises InputError if npm is
    missing or can't fetch onnxruntime-web.
    """
    folder = file.parent
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder / GRAPH)
    shutil.copytree(pictures, folder / "prototypes")
    (folder / SIDECAR).write_text(document, encoding="utf-8")
    for name, written in PAGE_FILES.items():
        (folder / written).write_bytes((files("export.targets") / name).read_bytes())
    (folder / WEIGHTS).write_bytes(weights.astype("<f4").tobytes())
    fetch_runtime(folder)


def web_document(manifest: Manifest, options: str) -> str:
    """Return the content of model.json: the manifest and the `options` of the graph, which browsers can't read from the
    graph."""
    return json.dumps({"manifest": manifest.model_dump(mode="json"), "options": json.loads(options)})


def run_web(file: Path) -> Runtime:
    """Open the folder's graph in onnxruntime on the CPU. A test runs the page itself in a browser."""
    return run_onnx(file.with_name(GRAPH))


def fetch_runtime(folder: Path) -> None:
    """Fetch onnxruntime's WebAssembly build into `folder`; raises InputError as `write_web` does."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"the target web fetches {RUNTIME} with npm, which is not installed; install Node.js with npm")
    with TemporaryDirectory() as packages:
        command = [npm, "pack", RUNTIME, "--ignore-scripts", "--pack-destination", packages, "--silent"]
        try:
            ended = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"npm did not fetch {RUNTIME} within {TIMEOUT} s; check that npm can reach its registry, and try again"
            ) from error
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or ["no message"]
            raise InputError(f"npm can't fetch {RUNTIME} ({lines[-1]}); check that npm can reach its registry")
        (package,) = Path(packages).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if digest != RUNTIME_SHA512:
            raise InputError(
                f"npm fetched a {RUNTIME} that differs from the published one (SHA-512 {digest}, expected "
                f"{RUNTIME_SHA512}); use another registry"
            )
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None  # the hash proves that the package contains it
                (folder / name).write_bytes(content.read())
