"""A bundle's graph on the execution providers of onnxruntime, side by side: time, and whether the answers agree."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.head.cost import in_turns

Session: TypeAlias = Any  # onnxruntime has no types
Arrays: TypeAlias = Mapping[str, NDArray[Any]]

CPU: Final = "CPUExecutionProvider"
# The sides that are measured where onnxruntime offers them. Without TF32, as the service runs; TF32 beside it, to say
# what that costs; TensorRT in float32.
SIDES: Final[dict[str, list[Any]]] = {
    "CPU": [CPU],
    "CUDA": [("CUDAExecutionProvider", {"use_tf32": "0"}), CPU],
    "CUDA, TF32": [("CUDAExecutionProvider", {"use_tf32": "1"}), CPU],
    "TensorRT": [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "0"}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        CPU,
    ],
}
BATCHES: Final = (1, 8, 32, 128)
ROUNDS: Final = 20
# What is compared; the maps of evidence follow from the same similarities.
COMPARED: Final = ("log_probability", "path", "evidence_prototype", "evidence_contribution")


def sessions(file: Path, sides: Mapping[str, list[Any]] = SIDES) -> tuple[dict[str, Session], dict[str, str]]:
    """Open the graph on every side that works here; returns the sessions, and why each other side can't be measured.

    A session that onnxruntime opened on another provider than the one asked for does not count.
    """
    import onnxruntime

    with contextlib.redirect_stdout(sys.stderr):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    found: dict[str, Session] = {}
    missing: dict[str, str] = {}
    for side, providers in sides.items():
        name = _name(providers[0])
        if name not in onnxruntime.get_available_providers():
            missing[side] = f"this onnxruntime has no {name}"
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            with contextlib.redirect_stdout(sys.stderr):
                session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        # onnxruntime raises classes of its own that share no base but Exception.
        except Exception as error:  # noqa: BLE001
            missing[side] = str(error).splitlines()[0]
            continue
        if name not in session.get_providers():
            missing[side] = f"onnxruntime uses {', '.join(session.get_providers())} instead of {name}"
            continue
        session.disable_fallback()
        found[side] = session
    return found, missing


def _name(provider: str | tuple[str, dict[str, str]]) -> str:
    return provider if isinstance(provider, str) else provider[0]


def timed(
    found: Mapping[str, Session], pictures: NDArray[np.uint8], batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """For each batch size: the median milliseconds of every side, measured in turns, and its time over the CPU's.

    Pictures uint8 [n, height, width, 3] are repeated where a batch is larger.
    """
    rows = []
    for batch in batches:
        images = pictures[np.arange(batch) % len(pictures)]
        tasks = {side: partial(session.run, None, {"image": images}) for side, session in found.items()}
        medians = {side: statistics.median(seconds) for side, seconds in in_turns(tasks, rounds).items()}
        rows += [
            {"side": side, "batch": batch, "ms": 1e3 * seconds, "of_cpu": seconds / medians["CPU"]}
            for side, seconds in medians.items()
        ]
    return rows


def answers(session: Session, pictures: NDArray[np.uint8], batch: int = 32) -> dict[str, NDArray[Any]]:
    """The outputs COMPARED for all pictures."""
    parts = [
        session.run(list(COMPARED), {"image": pictures[start : start + batch]})
        for start in range(0, len(pictures), batch)
    ]
    return {name: np.concatenate(values) for name, values in zip(COMPARED, zip(*parts, strict=True), strict=True)}


def agreement(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """How far two sides agree: the largest difference of a probability, the share of pictures with the same path, the
    share of levels with the same first evidence, and the largest difference of contributions where evidence is the
    same."""
    probability = np.abs(np.exp(ours["log_probability"]) - np.exp(theirs["log_probability"]))
    same = ours["evidence_prototype"] == theirs["evidence_prototype"]
    # A short path has no evidence at deeper levels: -1 on both sides.
    shown = ours["evidence_prototype"][:, :, 0] >= 0
    contribution = np.abs(ours["evidence_contribution"] - theirs["evidence_contribution"])
    return {
        "probability": float(probability.max()),
        "path": float((ours["path"] == theirs["path"]).all(axis=1).mean()),
        "first_evidence": float(same[:, :, 0][shown].mean()),
        "contribution": float(contribution[same].max(initial=0.0)),
    }
