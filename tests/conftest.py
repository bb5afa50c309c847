"""What most tests read: `run(**options)` and `bundle(**options)`, made once a session, and a photograph."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import (
    BundleFactory,
    RunFactory,
    Shared,
    bundle_factory,
    export_calibrated,
    export_routed,
    learned_run,
    run_factory,
    shared_by_workers,
)
from tests.idx import idx_bytes

# prometheus_client reads this at import; every test process gets a directory of its own.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="protoserve-test-metrics-")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
# torch's threads wait by spinning, which starves the servers and commands that tests start beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already use every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

EDGE_TARGETS = (
    "onnx",
    "onnx-edge",
    "onnx-routed",
    "triton",
    "onnx-fp16",
    "onnx-int8",
    "ort",
    "torchscript",
    "torch-export",
    "openvino",
    "executorch",
)
RESIZING_TARGETS = ("onnx", "onnx-edge", "onnx-routed", "torchscript", "torch-export", "openvino")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The folder that holds the session's runs and bundles."""
    return shared_by_workers(tmp_path_factory)


@pytest.fixture(scope="session")
def run(shared: Shared) -> RunFactory:
    """`run(**options)`: the folder of a random run, made once a session."""
    return run_factory(shared)


@pytest.fixture(scope="session")
def bundle(shared: Shared) -> BundleFactory:
    """`bundle(**options)`: the folder of a random run's bundle, made once a session."""
    return bundle_factory(shared)


@pytest.fixture(scope="session")
def tiny_run(shared: Shared) -> Path:
    """A run folder of a random hierarchical network."""
    return run_factory(shared)()


@pytest.fixture(scope="session")
def flat_run(shared: Shared) -> Path:
    """A run folder of a random ProtoPNet: the same leaves in one softmax."""
    return run_factory(shared)(kind="flat")


@pytest.fixture(scope="session")
def twin_run(shared: Shared) -> Path:
    """Another random network on the same taxonomy, with larger cells: 4 × 6 of them."""
    return run_factory(shared)(seed=1, stride=16)


@pytest.fixture(scope="session")
def tiny_bundle(shared: Shared) -> Path:
    """`tiny_run` as a bundle with two targets."""
    return bundle_factory(shared)("tiny", ("onnx", "torchscript"))


@pytest.fixture(scope="session")
def flat_bundle(shared: Shared) -> Path:
    """The ProtoPNet as a bundle with two targets."""
    return bundle_factory(shared)("flat", ("onnx", "torchscript"), kind="flat")


@pytest.fixture(scope="session")
def twin_bundle(shared: Shared) -> Path:
    """`twin_run` as a bundle, to make an ensemble with `tiny_bundle`."""
    return bundle_factory(shared)("twin", seed=1, stride=16)


@pytest.fixture(scope="session")
def learned(shared: Shared) -> tuple[Path, Path]:
    """(run, data): the tiny run, and a data set that it says to have learned from."""
    return learned_run(shared)


@pytest.fixture(scope="session")
def calibrated_bundle(shared: Shared) -> Path:
    """The bundle of a run like the tiny one, with the temperatures and thresholds of `tests.bundles`."""
    return shared.folder("calibrated", "calibrated", export_calibrated) / "bundle"


@pytest.fixture(scope="session")
def routed_bundle(shared: Shared) -> Path:
    """A bundle over a deep tree, whose routed graph is often uncertain; see `tests.bundles.export_routed`."""
    return shared.folder("routed", "routed", export_routed) / "bundle"


@pytest.fixture(scope="session")
def edge_bundle(shared: Shared) -> Path:
    """The learned run as a bundle with all targets that take any batch."""
    return bundle_factory(shared)("edge", EDGE_TARGETS, data=True)


@pytest.fixture(scope="session")
def resizing_bundle(shared: Shared) -> Path:
    """The tiny run as a bundle whose files for the edge take one picture of any size."""
    from export.sources import EdgeOptions

    return bundle_factory(shared)("resizing", RESIZING_TARGETS, edge=EdgeOptions(resize=True))


@pytest.fixture(scope="session")
def tiny_idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set like MNIST in small: 200 + 40 grey pictures, 20 × 16 pixels, of 4 coarse patterns under noise."""
    directory = tmp_path_factory.mktemp("idx") / "tiny"
    directory.mkdir()
    generator = np.random.default_rng(0)
    patterns = np.kron(generator.integers(0, 2, (4, 4, 4)) * 200, np.ones((5, 4), dtype=np.int64))
    for prefix, count in (("train", 200), ("t10k", 40)):
        labels = (np.arange(count) % 4).astype(np.uint8)
        images = (patterns[labels] + generator.integers(0, 50, (count, 20, 16))).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (directory / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return directory


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small JPEG, wider than high."""
    noise = np.random.default_rng(1).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("pictures") / "photograph.jpg"
    Image.fromarray(noise).resize((200, 150), Image.Resampling.BICUBIC).save(file, quality=95)
    return file
