"""What an extension measures: log-probabilities from similarities, similarities without a prototype's own source."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from training.data.splits import read_splits
from training.extending.measuring import (
    Stopwatch,
    chained,
    frozen_feed,
    log_probability,
    similarities,
    without_own_source,
)
from training.features.cache import FeatureCache


def test_similarities_and_probabilities_are_those_of_the_network(
    small_run: Path, small_data: Path, small_config: Callable[..., Any], tmp_path: Path
) -> None:
    network, _, _ = load_network(small_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    splits, place = read_splits(small_config(), small_data), torch.device("cpu")
    common = {"device": place, "console": Console(quiet=True)}
    feed = frozen_feed(splits.fit, splits.selection, network, small_config(), tmp_path, **common)  # type: ignore[arg-type]
    found = similarities(network, network.head, feed.cached("selection"), 4, place)
    with torch.inference_mode():
        (pictures,) = (torch.cat([batch for _, batch in feed.pictures("selection", np.arange(6), 0)]),)
        expected = network(pictures)
    assert found == pytest.approx(expected.similarity.numpy(), abs=1e-4)
    answers = log_probability(network.head, found)
    assert answers == pytest.approx(expected.log_probability.numpy(), abs=1e-4)


def test_caches_are_chained_row_by_row() -> None:
    first, second = np.arange(12.0).reshape(4, 3), np.arange(6.0).reshape(2, 3) + 100
    one, two = FeatureCache((first,)), FeatureCache((second,))
    for rows in (np.arange(4), np.array([0, 3])):
        whole = chained(one, rows, two)
        assert whole.batch(np.arange(len(whole))).tolist() == [*first[rows].tolist(), *second.tolist()]
    assert len(chained(one, np.arange(4), None)) == 4


def test_an_image_does_not_meet_the_prototype_that_was_cut_from_it() -> None:
    similarity = np.array([[9, 1], [1, 2], [3, 4], [5, 5]], dtype=np.float32)
    leaves, source = np.array([0, 0, 0, 1]), np.array([0, 3])
    found = without_own_source(similarity, leaves, source, np.array([0, 1]))
    # Image 0 has the mean of images 1 and 2; image 3 is alone in its leaf.
    assert found.tolist() == [[2, 1], [1, 2], [3, 4], [5, 5]]


def test_the_watch_tells_features_from_the_rest() -> None:
    watch = Stopwatch()
    with watch.on_features():
        time.sleep(0.05)
    assert watch.features >= 0.05
    assert watch.beside_features() < watch.features
