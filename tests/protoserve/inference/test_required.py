"""Required prototypes, worked by hand, and in predictions of a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import read_bundle, rewrite_manifest
from protoserve.inference.classifier import load
from protoserve.inference.required import Requirement, known_with_required

PATH = np.array([[0, 2, 5], [0, 2, -1], [1, 3, 6]])
SIMILARITY = np.array([[1.0, 3.0], [3.0, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        ([Requirement(2, 0, 2.0)], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        ([Requirement(2, 1, 2.0)], [[1, 1, 1], [1, 0, 0], [1, 1, 1]]),
        ([Requirement(5, 0, 0.5)], [[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
        ([Requirement(6, 0, 1.0), Requirement(0, 1, 2.0)], [[1, 1, 1], [0, 0, 0], [1, 1, 0]]),
    ],
)
def test_a_node_without_its_required_prototype_is_unknown_and_so_is_all_below(
    requirements: list[Requirement], expected: list[list[int]]
) -> None:
    found = known_with_required(None, PATH, SIMILARITY, requirements)
    assert found.astype(int).tolist() == expected


def test_what_was_unknown_stays_unknown() -> None:
    known = np.array([[True, True, False], [False, False, False], [True, True, True]])
    assert known_with_required(known, PATH, SIMILARITY, [Requirement(5, 0, 0.5)]).tolist() == known.tolist()


def test_predictions_know_a_node_only_with_what_it_requires(tiny_bundle: Path, tiny_run: Path, tmp_path: Path) -> None:
    pictures = list(np.load(tiny_run / "samples.npy"))
    bundle = read_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    link = CurationLink(before=bundle.version, required=[0], reason="the beak", by="Ann", at="2026-01-01")
    classifier = load(rewrite_manifest(bundle, curation=[link]).directory, device="cpu")
    record = bundle.prototypes[0]
    fitted = [classifier.fit(picture) for picture in pictures]
    similarity = classifier.engine.run(np.stack([image.array for image in fitted])).similarity[:, 0]
    assert record.usual is not None and {True, False} == set((similarity > record.usual).tolist())
    for found, prediction in zip(similarity > record.usual, classifier.predict_fitted(fitted), strict=True):
        known = [level.known for level in prediction.levels]
        assert known == [found or record.child not in [level.node for level in prediction.levels]] * len(known)
