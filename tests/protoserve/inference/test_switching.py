"""Answers as if prototypes were off, against the same sums with usual similarities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError
from protoserve.inference.classifier import load
from protoserve.inference.engine import Engine
from protoserve.inference.switching import Switches
from protoserve.taxonomy import Kind
from tests.protoserve.inference.random_heads import random_head


@pytest.mark.parametrize("kind", ["hierarchical", "flat", "autoencoder"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_answer_is_that_of_similarities_that_are_usual(kind: Kind, seed: int, tmp_path: Path) -> None:
    head = random_head(seed, tmp_path, kind)
    random = np.random.default_rng(seed)
    similarity = random.uniform(0, 3, (2, len(head.usual))).astype(np.float32).astype(np.float64)
    off = np.flatnonzero(random.random(len(head.usual)) < 0.4)
    found = Switches(head.bundle).without(head.outputs(similarity), off.tolist())
    similarity[:, off] = head.usual[off]
    wanted = head.outputs(similarity)
    for key in ("log_probability", "logit", "similarity"):
        np.testing.assert_allclose(getattr(found, key), getattr(wanted, key), rtol=1e-5, atol=1e-5, err_msg=key)
    assert (found.path == wanted.path).all()
    for image, level in zip(*np.nonzero(found.path >= 0), strict=True):
        contributions = head.centred[found.path[image, level]] * (similarity[image] - head.usual)
        assert found.positive_contribution[image, level] == pytest.approx(np.maximum(contributions, 0).sum(), abs=1e-5)
        told = found.evidence_prototype[image, level]
        np.testing.assert_allclose(
            found.evidence_contribution[image, level][told >= 0], contributions[told[told >= 0]], atol=1e-5
        )


@pytest.mark.parametrize("name", ["tiny_bundle", "flat_bundle"])
def test_with_nothing_off_the_answer_is_the_graphs_own(
    name: str, tiny_run: Path, request: pytest.FixtureRequest
) -> None:
    bundle = read_bundle(request.getfixturevalue(name))
    outputs = Engine(bundle, device="cpu").run(np.load(tiny_run / "samples.npy")[:4])
    found = Switches(bundle).without(outputs, [])
    for key in ("log_probability", "logit", "similarity", "evidence_contribution", "positive_contribution"):
        assert getattr(found, key) == pytest.approx(getattr(outputs, key), abs=1e-3), key
    assert (found.path == outputs.path).all()


def test_an_ensemble_answers_without_a_members_prototype(
    tiny_bundle: Path, twin_bundle: Path, photograph: Path
) -> None:
    ensemble = load([tiny_bundle, twin_bundle], device="cpu")
    off = ensemble.table.first_prototypes[1]
    before, after = ensemble.predict(photograph), ensemble.predict(photograph, without=(off,))
    assert after.without == [off] and before.without == []
    for level in after.levels:
        assert all(piece.prototype != off for piece in (*level.evidence, *level.against))
    whole = ensemble.engine.run(ensemble.fit(photograph).array[None])
    nothing = Switches(ensemble.bundle).without(whole, [])
    assert nothing.log_probability == pytest.approx(whole.log_probability, abs=1e-3)
    assert nothing.logit == pytest.approx(whole.logit, abs=1e-4)
    assert (nothing.known is None) == (whole.known is None)


def test_a_bundle_without_its_weights_can_not_be_asked(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    older = Bundle(bundle.directory, bundle.manifest.model_copy(update={"weights": None}))
    with pytest.raises(InputError, match="without its last-layer weights"):
        Switches(older)


def test_outputs_stay_as_they_were(tiny_bundle: Path, tiny_run: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    outputs = Engine(bundle, device="cpu").run(np.load(tiny_run / "samples.npy")[:2])
    before = replace(outputs, similarity=outputs.similarity.copy())
    Switches(bundle).without(outputs, [0])
    assert (outputs.similarity == before.similarity).all()


def test_what_competes_with_no_switched_off_prototype_stays_as_the_graph_gave_it(
    tiny_bundle: Path, tiny_run: Path
) -> None:
    bundle = read_bundle(tiny_bundle)
    outputs = Engine(bundle, device="cpu").run(np.load(tiny_run / "samples.npy"))
    deep = next(record.id for record in bundle.manifest.prototypes if record.parent == "Animal/Ape")
    found = Switches(bundle).without(outputs, [deep])
    below = bundle.taxonomy.index["Animal/Ape"]
    image = int(np.flatnonzero((outputs.path == below).any(axis=1) & (found.path == outputs.path).all(axis=1))[0])
    for name in ("evidence_prototype", "evidence_contribution", "evidence_map", "against_prototype"):
        before, after = getattr(outputs, name)[image], getattr(found, name)[image]
        np.testing.assert_array_equal(after[:2], before[:2], err_msg=name)
    assert not found.evidence_contribution[image][found.evidence_prototype[image] == deep].any()
    others = [node for node, name in enumerate(bundle.taxonomy.names) if not name.startswith("Animal/Ape/")]
    np.testing.assert_array_equal(found.logit[:, others], outputs.logit[:, others])
