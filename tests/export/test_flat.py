"""ProtoPNet, the same network with one softmax over all leaves, from run to prediction."""

from pathlib import Path

import pytest

import protoserve
from protoserve.bundle.folder import Bundle
from protoserve.inference.classifier import Classifier


@pytest.fixture(scope="module")
def model(flat_bundle: Path) -> Classifier:
    return protoserve.load(flat_bundle)


def test_inner_levels_are_sums_and_only_the_leaf_has_evidence(model: Classifier, photograph: Path) -> None:
    assert isinstance(model.bundle, Bundle)
    limit = model.bundle.manifest.graph.top_k
    prediction = model.predict(photograph, top_k=limit, alternatives=10)
    *inner, leaf = prediction.levels
    assert all(level.logit is None and level.evidence == [] for level in inner)
    assert len(leaf.evidence) == limit
    assert leaf.logit is not None
    for level in prediction.levels:
        total = level.probability + sum(other.probability for other in level.alternatives)
        # Alternatives are the other nodes of this depth; leaves that stand higher are not among them.
        assert total <= 1 + 1e-5
    assert inner[0].probability >= leaf.probability


def test_every_prototype_speaks_for_a_leaf_against_all_others(model: Classifier) -> None:
    assert isinstance(model.bundle, Bundle)
    manifest = model.bundle.manifest
    leaves = {model.taxonomy.names[leaf] for leaf in model.taxonomy.leaves}
    assert {record.child for record in manifest.prototypes} == leaves
    assert {record.parent for record in manifest.prototypes} == {""}
