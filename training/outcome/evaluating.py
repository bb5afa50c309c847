"""Scoring a finished run's network on a split."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from protoserve.bundle.folder import MANIFEST, Bundle, read_bundle
from protoserve.data.checking import without_broken
from protoserve.data.dataset import read_labelled
from protoserve.data.novel import read_novel
from protoserve.device import Device
from protoserve.errors import InputError
from protoserve.networks.device import torch_device
from protoserve.networks.model_file import load_network
from protoserve.run.folder import open_run
from protoserve.run.records import Evaluation
from protoserve.scores import scores
from protoserve.taxonomy import Taxonomy
from training.loop.answers import answer_dataset, rows_of
from training.outcome.novelty_report import evaluate_novelty
from training.outcome.promising import evaluate_promise
from training.progress import tracked


def evaluate(
    run: Path,
    data: Path,
    split: str,
    *,
    novel: Path | None = None,
    skip_broken: bool = False,
    device: Device,
    console: Console,
) -> Evaluation:
    """The scores of a finished run's network on one split (see `protoserve.scores.scores`), and the `seconds` it took.

    Pictures that are labelled only down to an inner node count down to there; the promise and novelty leave them out.

    Every picture's header is read first; with `skip_broken`, pictures that can't be read are left out and counted.
    With `novel`, a folder with images of classes that the run does not know (see `read_novel`), the result also has
    `novel` (see `training.outcome.novelty_report.novelty_report`).
    """
    chosen = torch_device(device)
    if (run / MANIFEST).is_file():
        raise InputError(f"{run} is a bundle; score it with 'protoserve validate {run} --data {data}'")
    opened = open_run(run)
    network, description, _ = load_network(opened.model)
    taxonomy = Taxonomy.from_dict(description.taxonomy)
    left_out = opened.provenance().left_out
    dataset = read_labelled(data, split, taxonomy, left_out=left_out)
    with tracked(console, "reading headers", len(dataset)) as advance:
        dataset, _ = without_broken(dataset, skip=skip_broken, advance=advance)
    unknown = None if novel is None else read_novel(novel, split, taxonomy, left_out)
    for note in (*dataset.notes(), *(() if unknown is None else unknown.notes())):
        console.print(note, markup=False, soft_wrap=True)
    began = time.perf_counter()
    network = network.to(chosen)
    answers = answer_dataset(network, dataset, description.input, chosen, console)
    result: dict[str, Any] = dict(scores(answers.log_probability, dataset.leaves, taxonomy))
    # A promise and a threshold are about whole paths.
    whole = np.flatnonzero(dataset.to_leaf)
    answers, dataset = rows_of(answers, whole), dataset.subset(whole)
    result["promise"] = evaluate_promise(opened, network, answers, dataset)
    if unknown is not None:
        recorded = opened.metrics().novelty
        thresholds = None if recorded is None else recorded.record()
        result["novel"] = evaluate_novelty(
            network, answers, dataset, unknown, thresholds, description.input, chosen, console
        )
    return Evaluation(**result, passed_over=dict(dataset.passed_over), seconds=round(time.perf_counter() - began, 2))


def audited_bundle(run: Path, bundle: Path) -> Bundle:
    """Read the bundle whose truth card says how true a run's evidence is.

    Raises InputError if the bundle was not exported from the run, and BundleError if it can't be read.
    """
    opened = read_bundle(bundle)
    if opened.manifest.provenance.model_copy(update={"export": None}) != open_run(run).provenance():
        raise InputError(f"{bundle}: was not exported from {run}; give the bundle that was, or leave --bundle out")
    return opened


def has_prototypes(run: Path) -> bool:
    """Whether a run's network gives evidence: it keeps its prototypes with their nearest patches."""
    return open_run(run).analysis() is not None
