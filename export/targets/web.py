"""The target that runs wholly in a browser: a folder with the graph, a page, and onnxruntime's WebAssembly build."""

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

from export.parity import Runtime
from export.targets.onnx_files import run_onnx
from protoserve.errors import InputError

# A release and the SHA-512 of its package: what is published once is what every page gets.
RUNTIME: Final = "onnxruntime-web@1.30.0"
RUNTIME_SHA512: Final = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The build for processors alone, with its loader in one module, and the WebAssembly itself.
RUNTIME_FILES: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Seconds for 30 MB, on a slow line.
PATIENCE: Final = 600
PAGE_FILES: Final = {"page.html": "index.html", "page.mjs": "page.mjs"}
GRAPH: Final = "model.onnx"
SIDECAR: Final = "model.json"


def write_web(source: Path, file: Path, metadata: dict[str, str], pictures: Path) -> None:
    """Fill the folder of `file` (its page): the ONNX file `source`, which takes pictures of any size, `metadata` as
    model.json, for browsers can't read them from the graph, and the prototypes' `pictures`.

    Raises InputError where npm is missing or can't fetch onnxruntime-web.
    """
    folder = file.parent
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder / GRAPH)
    shutil.copytree(pictures, folder / "prototypes")
    document = {"manifest": json.loads(metadata["protoserve"]), "options": json.loads(metadata["options"])}
    (folder / SIDECAR).write_text(json.dumps(document), encoding="utf-8")
    for name, place in PAGE_FILES.items():
        (folder / place).write_bytes((files("export.targets") / name).read_bytes())
    fetch_runtime(folder)


def run_web(file: Path) -> Runtime:
    """The folder's graph in onnxruntime on this machine; the page itself is tried in a browser by a test."""
    return run_onnx(file.with_name(GRAPH))


def fetch_runtime(folder: Path) -> None:
    """Put onnxruntime's WebAssembly build into `folder`; raises InputError as `write_web` does."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"the target web takes {RUNTIME} from npm, which is not installed; install Node.js with npm")
    with TemporaryDirectory() as place:
        command = [npm, "pack", RUNTIME, "--ignore-scripts", "--pack-destination", place, "--silent"]
        try:
            ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"npm has not fetched {RUNTIME} within {PATIENCE} s; see that npm can reach its registry, and try again"
            ) from error
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or ["it says nothing"]
            raise InputError(f"npm can't fetch {RUNTIME} ({lines[-1]}); see that npm can reach its registry")
        (package,) = Path(place).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if found != RUNTIME_SHA512:
            raise InputError(
                f"npm gave another {RUNTIME} than was published (SHA-512 {found}); don't use this registry"
            )
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None  # the sum has shown that this is the package that holds it
                (folder / name).write_bytes(content.read())
