"""Novelty thresholds of bundles: read whole, or refused by name."""

from pathlib import Path

import pytest

from protoserve.bundle.folder import Bundle
from protoserve.errors import BundleError
from protoserve.inference.thresholds import read_thresholds
from protoserve.schema import NoveltyRecord
from tests.protoserve.inference.random_heads import random_head


def with_thresholds(bundle: Bundle, thresholds: dict[str, float]) -> Bundle:
    record = NoveltyRecord(score="probability", true_positive_rate=0.95, thresholds=thresholds)
    return Bundle(bundle.directory, bundle.manifest.model_copy(update={"novelty": record}))


def test_a_bundle_without_thresholds_has_none(tmp_path: Path) -> None:
    assert read_thresholds(random_head(1, tmp_path).bundle) is None


def test_thresholds_are_those_of_the_manifest(tmp_path: Path) -> None:
    found = read_thresholds(with_thresholds(random_head(1, tmp_path).bundle, {"": 0.5}))
    assert found is not None
    assert found.score == "probability" and found.minimum[0] == 0.5


def test_a_threshold_of_an_unknown_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not have"):
        read_thresholds(with_thresholds(random_head(1, tmp_path).bundle, {"Nowhere": 0.5}))
