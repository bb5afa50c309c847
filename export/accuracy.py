"""The pictures that lower precision is calibrated and judged on, and answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from export.parity import Runtime
from protoserve.data.dataset import Dataset, held_out_share, hold_out, holds_split, read_split
from protoserve.errors import InputError
from protoserve.graph_signature import named_arrays
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import ExplainedNetwork
from protoserve.run.folder import Run
from protoserve.taxonomy import Taxonomy

CALIBRATION_IMAGES: Final = 256
# The outputs that accuracy and evidence are judged by (see `export.judging`).
JUDGED: Final = ("log_probability", "path", "evidence_prototype", "evidence_contribution")


@dataclass(frozen=True)
class JudgingData:
    """The parts of a run's data set that targets of lower precision need.

    `calibration` has at most `CALIBRATION_IMAGES` images that the run was trained on; `validation` has images that it
    was not trained on.
    """

    calibration: Dataset
    validation: Dataset


def judging_data(run: Run, data: Path, taxonomy: Taxonomy) -> JudgingData:
    """Read both parts of the data set at `data`, split as the run split it.

    Raises InputError if it is not the data set that the run was trained on, or has no validation images.
    """
    learned, held_out = learned_images(run, data, taxonomy)
    if holds_split(data, "val"):
        provenance = run.provenance()
        validation = read_split(data, "val", taxonomy, left_out=provenance.left_out).without(provenance.broken)
    elif len(held_out):
        validation = held_out
    else:
        raise InputError(
            f"{data}: there is no val split, and the run held out no images; less precision than float32 can't be "
            "judged without validation images, so add a val split"
        )
    chosen = np.random.default_rng(0).permutation(len(learned))[:CALIBRATION_IMAGES]
    return JudgingData(learned.subset(np.sort(chosen)), validation)


def learned_images(run: Run, data: Path, taxonomy: Taxonomy) -> tuple[Dataset, Dataset]:
    """Read the images of the train split that the run was fitted on, and those that it held out.

    Raises InputError if `data` is not the data set that the run was trained on.
    """
    provenance = run.provenance()
    try:
        config = provenance.config
        fraction, seed = config["data"]["hold_out"], config["data"]["seed"]
        seed = config["seed"] if seed is None else seed
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{run.directory}: provenance.json does not say how the run split its data ({error}); train again"
        ) from error
    if provenance.data is None:
        raise InputError(f"{run.directory}: provenance.json does not name the run's data set; train again")
    fingerprint, left_out = provenance.data.fingerprint, provenance.left_out
    everything = read_split(data, "train", taxonomy, left_out=left_out).without(provenance.broken)
    if everything.fingerprint() != fingerprint:
        raise InputError(
            f"{data}: this is not the data set that {run.directory} learned from, or its train split has changed; give "
            "the run's own data set to --data"
        )
    return hold_out(everything, held_out_share(fraction, has_val=holds_split(data, "val")), seed)


def pictures(dataset: Dataset, rule: InputRule) -> NDArray[np.uint8]:
    """Resize all images of a data set to model size: uint8 [images, height, width, 3]."""
    return np.stack([fit(dataset.picture(index), rule).array for index in range(len(dataset))])


def network_runtime(network: ExplainedNetwork, top_k: int) -> Runtime:
    """Make a runtime of the network itself, on the CPU."""

    def run(batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = network.explain(torch.from_numpy(batch), top_k)
        return {name: output.numpy() for name, output in named_arrays(outputs).items()}

    return run


def in_batches(arrays: NDArray[np.uint8], batch: int, *, whole: bool = False) -> list[NDArray[np.uint8]]:
    """Split pictures [n, …] into batches; with `whole`, the first pictures are repeated to fill the last one."""
    if whole:
        arrays = arrays[np.arange(-(-len(arrays) // batch) * batch) % len(arrays)]
    return [arrays[start : start + batch] for start in range(0, len(arrays), batch)]


def answers(runtime: Runtime, batches: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    """Run a runtime on batches uint8 [N, H, W, 3] and concatenate the outputs in `JUDGED`."""
    parts = [runtime(batch) for batch in batches]
    return {name: np.concatenate([outputs[name] for outputs in parts]) for name in JUDGED}
