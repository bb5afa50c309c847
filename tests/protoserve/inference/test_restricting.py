"""Restricted outputs: other probabilities and paths, the same logits, and evidence that still adds up to them."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import read_bundle
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.engine import Outputs
from protoserve.inference.restricting import host_evidence, restrict
from protoserve.restriction import restriction_of, unrestricted
from tests.bundles import BundleFactory


@pytest.fixture(scope="module", params=["bundle", "flat", "ensemble"])
def classifier(bundle: BundleFactory, request: pytest.FixtureRequest) -> Classifier:
    """A bundle, a flat one, and an ensemble of two."""
    if request.param == "flat":
        return load(bundle(kind="flat"), device="cpu")
    first = bundle()
    return load(first if request.param == "bundle" else [first, bundle(seed=1)], device="cpu")


@pytest.fixture(scope="module")
def outputs(classifier: Classifier) -> Outputs:
    rule = classifier.bundle.input
    pictures = np.random.default_rng(0).integers(0, 256, (3, rule.height, rule.width, 3), dtype=np.uint8)
    return classifier.engine.run(pictures)


def predicted_leaf(model: Model, outputs: Outputs, image: int) -> str:
    return model.taxonomy.names[int(outputs.path[image].max())]


def test_everything_allowed_changes_nothing(classifier: Classifier, outputs: Outputs) -> None:
    evidence = host_evidence(classifier.bundle)
    assert evidence is not None
    found = restrict(outputs, unrestricted(classifier.taxonomy), evidence)
    np.testing.assert_array_equal(found.outputs.path, outputs.path)
    np.testing.assert_allclose(np.exp(found.outputs.log_probability), np.exp(outputs.log_probability), atol=1e-5)
    np.testing.assert_array_equal(found.outputs.evidence_prototype, outputs.evidence_prototype)
    assert (found.excluded == 0).all()


def test_evidence_on_a_new_path_adds_up_to_the_graphs_own_logits(classifier: Classifier, outputs: Outputs) -> None:
    """With every prototype of the path's groups shown, prior and contributions are the logit that the graph gave."""
    model, table = classifier.bundle, classifier.table
    evidence = host_evidence(model)
    assert evidence is not None
    restriction = restriction_of(model.taxonomy, deny=[predicted_leaf(model, outputs, 0)])
    found = restrict(outputs, restriction, evidence)
    np.testing.assert_array_equal(found.outputs.logit, outputs.logit)
    assert (found.outputs.path[0] != outputs.path[0]).any()
    assert found.excluded[0] == pytest.approx(
        np.exp(outputs.log_probability[0, model.taxonomy.index[predicted_leaf(model, outputs, 0)]]), abs=1e-6
    )
    whole = evidence.logits([outputs])
    for node in found.outputs.path[0][found.outputs.path[0] >= 0].tolist():
        if table.has_head[node]:
            assert whole[0, node] == pytest.approx(outputs.logit[0, node], abs=1e-3)
            level = len(model.taxonomy.nodes[node]) - 1
            top = found.outputs.evidence_prototype[0, level, 0]
            weight, similarity = found.outputs.evidence_weight[0, level, 0], outputs.similarity[0, top]
            usual = classifier.table.prototypes[top].usual or 0.0
            assert found.outputs.evidence_contribution[0, level, 0] == pytest.approx(
                weight * (similarity - usual), abs=1e-4
            )
            assert found.outputs.evidence_cell[0, level, 0] == outputs.cell[0, top]


def test_a_picture_of_a_batch_does_not_see_the_others(classifier: Classifier, outputs: Outputs) -> None:
    model = classifier.bundle
    evidence = host_evidence(model)
    assert evidence is not None
    restriction = restriction_of(model.taxonomy, deny=[predicted_leaf(model, outputs, 1)])
    together, alone = restrict(outputs, restriction, evidence), restrict(outputs.rows(1, 2), restriction, evidence)
    for name in ("path", "log_probability", "evidence_prototype", "evidence_contribution", "against_prototype"):
        np.testing.assert_array_equal(getattr(together.outputs, name)[1:2], getattr(alone.outputs, name))


def test_a_bundle_without_its_last_layers_has_no_evidence_of_its_own(bundle: BundleFactory) -> None:
    whole = read_bundle(bundle())
    manifest = whole.manifest.model_copy(update={"weights": None})
    assert host_evidence(type(whole)(whole.directory, manifest)) is None
