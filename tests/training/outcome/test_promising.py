"""The promise of a finished run: its calibration pictures are the network's own answers, its scores are counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.images.fitting import fit
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.promise.calibration import read_calibration
from protoserve.run.folder import open_run


def test_a_run_keeps_the_networks_answers_for_its_selection_images(small_run: Path, small_data: Path) -> None:
    run = open_run(small_run)
    network, description, _ = load_network(run.model)
    assert isinstance(network, PrototypeNetwork)
    metrics, taxonomy = run.metrics(), read_taxonomy(small_data)
    assert metrics.promise is not None and metrics.selection is not None
    kept = read_calibration(run.calibration, len(taxonomy.leaves), groups=2)
    assert len(kept) == metrics.promise.images == metrics.selection.images
    # Selection is held out of train, so every row must be the answer for some training image of its leaf.
    train = read_split(small_data, "train", taxonomy)
    pictures = np.stack([fit(train.picture(image), description.input).array for image in range(len(train))])
    with torch.inference_mode():
        answers = network(torch.from_numpy(pictures)).log_probability[:, list(taxonomy.leaves)].numpy()
    for leaf, row in zip(kept.leaf.tolist(), kept.log_probability, strict=True):
        assert np.abs(answers[train.leaves == leaf] - row).max(axis=1).min() < 1e-4


def test_a_run_with_few_pictures_promises_nothing_and_counts_every_split(small_run: Path) -> None:
    metrics = open_run(small_run).metrics()
    promise = metrics.promise
    assert promise is not None
    assert promise.thresholds == {"0.9": None, "0.95": None, "0.99": None}
    assert promise.least_images == {"0.9": 51, "0.95": 104, "0.99": 528}
    for split, scores in metrics.of().items():
        answers = getattr(promise, split)
        assert list(answers) == ["0.9", "0.95", "0.99"]
        assert answers["0.9"].images == scores.images and answers["0.9"].answered["all"] == 0
