"""Bundles that promise a precision, from calibration pictures that a test makes up."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from protoserve.bundle.folder import MANIFEST, SUMS, Bundle, read_bundle, write_bundle, write_manifest
from protoserve.promise.calibration import Calibration, write_calibration
from protoserve.promise.measuring import promise_metrics
from protoserve.promise.threshold import Walks
from protoserve.taxonomy import Taxonomy


def sure_above(taxonomy: Taxonomy, least: float, groups: int, images: int = 600) -> Calibration:
    """Pictures of the first leaf, whose probability is drawn from 0 to 1: it is right at `least` or more; below, the
    picture is of the last leaf. All fit all groups."""
    generator = np.random.default_rng(0)
    leaves = len(taxonomy.leaves)
    own = generator.uniform(1.0 / leaves, 1.0, images)
    probability = np.repeat((1 - own)[:, None] / (leaves - 1), leaves, axis=1)
    probability[:, 0] = own
    leaf = np.where(own >= least, 0, leaves - 1)
    fits = np.ones((images, groups), dtype=np.bool_)
    return Calibration(leaf.astype(np.int32), np.log(probability).astype(np.float32), fits)


def promising(bundle: Path, directory: Path, calibration: Calibration, precision: float = 0.9) -> Bundle:
    """Copy a bundle to `directory` and let it promise a precision by these calibration pictures."""
    source = read_bundle(bundle)
    walks = Walks(np.zeros((0, 1)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    record = promise_metrics(walks, precision, 0.95).record("calibration")
    record = record.model_copy(update={"images": len(calibration)})
    with write_bundle(directory) as draft:
        shutil.copytree(bundle, draft, dirs_exist_ok=True)
        for name in (MANIFEST, SUMS):
            (draft / name).unlink()
        write_calibration(calibration, draft / "calibration")
        write_manifest(
            draft, lambda version: source.manifest.model_copy(update={"promise": record, "version": version})
        )
    return read_bundle(directory)
