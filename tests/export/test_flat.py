"""ProtoPNet, the same network with one softmax over all leaves, from run to prediction."""

from pathlib import Path

import numpy as np
import pytest

import protoserve
from protoserve.bundle.folder import Bundle
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Engine


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
    assert inner[0].probability >= leaf.probability


def test_an_inner_nodes_probability_is_the_sum_over_its_leaves_which_sum_to_1(
    model: Classifier, photograph: Path
) -> None:
    bundle = model.bundle
    assert isinstance(bundle, Bundle)
    picture = fit(decode(photograph), bundle.manifest.input).array
    (logarithms,) = Engine(bundle, device="cpu").run(picture[None]).log_probability
    probability = np.exp(logarithms.astype(np.float64))
    leaves = list(model.taxonomy.leaves)
    assert probability[leaves].sum() == pytest.approx(1.0, abs=1e-5)
    for node, name in enumerate(model.taxonomy.names):
        below = [leaf for leaf in leaves if f"{model.taxonomy.names[leaf]}/".startswith(f"{name}/")]
        assert probability[node] == pytest.approx(probability[below].sum(), abs=1e-5)
    prediction = model.predict(photograph)
    for level in prediction.levels:
        node = model.taxonomy.index["/".join(prediction.path[: level.level])]
        assert level.probability == pytest.approx(probability[node], abs=1e-5)


def test_every_prototype_speaks_for_a_leaf_against_all_others(model: Classifier) -> None:
    assert isinstance(model.bundle, Bundle)
    manifest = model.bundle.manifest
    leaves = {model.taxonomy.names[leaf] for leaf in model.taxonomy.leaves}
    assert {record.child for record in manifest.prototypes} == leaves
    assert {record.parent for record in manifest.prototypes} == {""}
