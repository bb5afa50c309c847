"""What less precision costs: accuracy per level and evidence, on validation pictures that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from export.parity import Arrays, Precision, Runtime, Tolerance
from export.sources import EdgeOptions
from protoserve.data.dataset import Dataset, hold_out, holds_split, read_split
from protoserve.errors import InputError, ParityError
from protoserve.graph_signature import named_arrays
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import ExplainedNetwork
from protoserve.run.folder import Run
from protoserve.scores import scores
from protoserve.taxonomy import Taxonomy

CALIBRATION_IMAGES: Final = 256
_KEPT: Final = ("log_probability", "path", "evidence_prototype", "evidence_contribution")


@dataclass(frozen=True)
class HeldBack:
    """The parts of a run's data set that an export needs: `calibration`, some of what the run learned from, and
    `validation`, which it did not."""

    calibration: Dataset
    validation: Dataset


def held_back(run: Run, data: Path, taxonomy: Taxonomy) -> HeldBack:
    """Both parts of the data set at `data`, split as the run split it.

    Raises InputError when this is not the data set that the run learned from, or holds nothing to validate on.
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
    everything = read_split(data, "train", taxonomy, left_out=left_out)
    if everything.fingerprint() != fingerprint:
        raise InputError(f"{data}: is not the data set that {run.directory} learned from, or is changed")
    learned, held = hold_out(everything, fraction, seed)
    if holds_split(data, "val"):
        validation = read_split(data, "val", taxonomy, left_out=left_out)
    elif len(held):
        validation = held
    else:
        raise InputError(f"{data}: holds no val, and the run held nothing back; less than float32 can't be judged")
    chosen = np.random.default_rng(0).permutation(len(learned))[:CALIBRATION_IMAGES]
    return HeldBack(learned.subset(np.sort(chosen)), validation)


def pictures(dataset: Dataset, rule: InputRule) -> NDArray[np.uint8]:
    """uint8 [images, height, width, 3]: all images of a data set at model size."""
    return np.stack([fit(dataset.picture(number), rule).array for number in range(len(dataset))])


def network_runtime(network: ExplainedNetwork, top_k: int) -> Runtime:
    """The network itself, asked like a file in its runtime."""

    def run(given: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = network.explain(torch.from_numpy(given), top_k)
        return {name: output.numpy() for name, output in named_arrays(outputs).items()}

    return run


def in_batches(arrays: NDArray[np.uint8], batch: int, *, whole: bool = False) -> list[NDArray[np.uint8]]:
    """The pictures [n, …] in batches; `whole` repeats the first ones to fill the last, for files that take no less."""
    if whole:
        arrays = arrays[np.arange(-(-len(arrays) // batch) * batch) % len(arrays)]
    return [arrays[start : start + batch] for start in range(0, len(arrays), batch)]


def answers(runtime: Runtime, given: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    """What a runtime says to batches uint8 [N, H, W, 3]: those outputs that accuracy and evidence are told from."""
    found = [runtime(batch) for batch in given]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in _KEPT}


def first_evidence(expected: Arrays, found: Arrays) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(there, same), both bool [N, L]: whether the network has evidence at a level, and whether the target gives the
    same prototype first, for the same node.

    Another prototype is the same only where the network itself can't tell the two apart: their contributions differ by
    no more than float32's tolerance, by the network's own ranking.
    """
    wanted, given = expected["evidence_prototype"], found["evidence_prototype"][:, :, 0]
    contribution = expected["evidence_contribution"]
    tied = contribution >= contribution[:, :, :1] - 2 * Tolerance().logit
    same = ((wanted == given[:, :, None]) & tied).any(axis=2) & (expected["path"] == found["path"])
    there = wanted[:, :, 0] >= 0
    return there, same & there


def evidence_kept(there: NDArray[np.bool_], same: NDArray[np.bool_]) -> dict[str, float]:
    """Per level, of the pictures that have evidence there, the share whose first piece is the same (see
    `first_evidence`); levels at which no picture has any are left out."""
    return {
        f"level_{level + 1}": float(same[:, level].sum() / there[:, level].sum())
        for level in range(there.shape[1])
        if there[:, level].any()
    }


def judge_target(
    network: ExplainedNetwork,
    top_k: int,
    runtime: Runtime,
    validation: Dataset,
    rule: InputRule,
    options: EdgeOptions,
    precision: Precision,
) -> dict[str, Any]:
    """`judge` a file in its runtime on the validation pictures; where it resizes by itself, on these as they are."""
    fitted = pictures(validation, rule)
    expected = answers(network_runtime(network, top_k), in_batches(fitted, 8))
    if options.resize:
        given = [np.asarray(validation.picture(number).picture)[None] for number in range(len(validation))]
    else:
        given = in_batches(fitted, options.batch or 8, whole=options.batch is not None)
    found = {name: array[: len(fitted)] for name, array in answers(runtime, given).items()}
    return judge(expected, found, validation.leaves, network.head.taxonomy, precision)


def judge(
    expected: Arrays,
    found: Arrays,
    leaves: NDArray[np.int64],
    taxonomy: Taxonomy,
    precision: Precision,
) -> dict[str, Any]:
    """Compare a target's `found` with the network's `expected` answers on pictures whose classes are `leaves`.

    Returns a JSON-ready report: accuracy per level of both, the loss in points, and how often the first piece of
    evidence is the same, per level. Raises ParityError, naming every figure that is missed.
    """
    before = scores(np.asarray(expected["log_probability"]), leaves, taxonomy)["accuracy"]
    after = scores(np.asarray(found["log_probability"]), leaves, taxonomy)["accuracy"]
    loss = {level: round(100 * (before[level] - after[level]), 3) for level in before}
    there, same = first_evidence(expected, found)
    agreement = evidence_kept(there, same)
    missed = []
    if precision.accuracy_loss is not None:
        missed += [
            f"{level} loses {lost:.2f} points of accuracy (at most {precision.accuracy_loss:g})"
            for level, lost in loss.items()
            if lost > precision.accuracy_loss
        ]
    if precision.top_evidence is not None:
        missed += [
            f"{level} has the same first piece of evidence in {100 * share:.1f} % of pictures (at least "
            f"{100 * precision.top_evidence:g} %)"
            for level, share in agreement.items()
            if share < precision.top_evidence
        ]
    if missed:
        raise ParityError(
            f"parity: on {len(leaves)} validation pictures {precision.name} is too far from the network: "
            f"{'; '.join(missed)}; no bundle was written"
        )
    return {
        "pictures": len(leaves),
        "accuracy": {"network": before, "target": after},
        "loss_points": loss,
        "first_evidence_same": agreement,
    }
