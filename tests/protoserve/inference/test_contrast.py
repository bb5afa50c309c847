"""Why not X: on random heads over uneven trees, against the sums by hand; and on every runtime that gives all
similarities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError
from protoserve.inference.classifier import load
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence import predictions
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.options import PredictOptions
from protoserve.schema import Contrast, Prediction
from protoserve.taxonomy import Kind
from tests.bundles import BundleFactory, older_bundle
from tests.protoserve.inference.random_heads import GEOMETRY, RandomHead, random_head


def asked(head: RandomHead, outputs: Outputs, node: str, top_k: int = 3) -> list[Prediction]:
    table = head.table
    geometries = [GEOMETRY] * len(outputs)
    return predictions(outputs, table, geometries, PredictOptions(top_k=top_k, contrast=node).resolved(table))


def contrast_of(prediction: Prediction) -> Contrast:
    assert prediction.contrast is not None
    return prediction.contrast


# ---- the sums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hierarchical", "flat", "autoencoder"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_differences_add_up_for_every_node(kind: Kind, seed: int, tmp_path: Path) -> None:
    head = random_head(seed, tmp_path, kind)
    similarity = np.random.default_rng(seed).uniform(0, 3, (2, len(head.usual))).astype(np.float32).astype(np.float64)
    outputs = head.outputs(similarity)
    tree, centred = head.bundle.taxonomy, head.centred
    for node, name in enumerate(tree.names):
        for image, prediction in enumerate(asked(head, outputs, name)):
            contrast = contrast_of(prediction)
            if contrast.relation == "predicted":
                assert node in outputs.path[image]
                assert contrast.level is None and not contrast.evidence and not contrast.path
                continue
            assert contrast.relation == "beside" and node not in outputs.path[image]
            assert contrast.level is not None and contrast.predicted is not None and contrast.instead is not None
            ours, theirs = tree.index[contrast.predicted], tree.index[contrast.instead]
            logit = centred @ similarity[image]
            assert contrast.logit_difference == pytest.approx(logit[ours] - logit[theirs], abs=1e-4)
            difference = (centred[ours] - centred[theirs]) * (similarity[image] - head.usual)
            pieces = [*contrast.evidence, *contrast.missing]
            assert len({piece.prototype for piece in pieces}) == len(pieces)
            for piece in pieces:
                assert piece.difference == pytest.approx(difference[piece.prototype], abs=1e-5)
                assert piece.predicted - piece.instead == pytest.approx(piece.difference, abs=1e-9)
            hidden = difference.sum() - sum(piece.difference for piece in pieces)
            assert contrast.rest == pytest.approx(hidden, abs=1e-4)
            prior = (centred[ours] - centred[theirs]) @ head.usual
            assert contrast.prior_difference == pytest.approx(prior, abs=1e-5)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_paths_part_between_siblings_and_the_rest_of_the_path_is_told(seed: int, tmp_path: Path) -> None:
    head = random_head(seed, tmp_path)
    similarity = np.random.default_rng(seed).uniform(0, 3, (1, len(head.usual)))
    outputs = head.outputs(similarity)
    tree = head.bundle.taxonomy
    chance = np.exp(head.log_probability(head.logits(similarity[0])))
    for name in tree.names:
        contrast = contrast_of(asked(head, outputs, name)[0])
        if contrast.relation == "predicted":
            continue
        assert contrast.level is not None and contrast.predicted is not None and contrast.instead is not None
        assert contrast.predicted.rpartition("/")[0] == contrast.instead.rpartition("/")[0]
        assert contrast.predicted.count("/") == contrast.instead.count("/") == contrast.level - 1
        parts = name.split("/")
        wanted = ["/".join(parts[: depth + 1]) for depth in range(contrast.level - 1, len(parts))]
        assert [node.node for node in contrast.path] == wanted
        for node in contrast.path:
            above = node.node.rpartition("/")[0]
            own = chance[tree.index[node.node]]
            assert node.probability == pytest.approx(own, rel=1e-3)
            assert node.conditional == pytest.approx(own / (chance[tree.index[above]] if above else 1.0), rel=1e-3)


def test_what_was_not_found_of_the_other_node_is_listed_apart(tmp_path: Path) -> None:
    head = random_head(3, tmp_path)
    similarity = np.random.default_rng(3).uniform(0, 3, (1, len(head.usual)))
    outputs = head.outputs(similarity)
    listed = 0
    for name in head.bundle.taxonomy.names:
        contrast = contrast_of(asked(head, outputs, name, top_k=6)[0])
        for piece in contrast.missing:
            listed += 1
            assert not piece.found and piece.child == contrast.instead and piece.similarity <= piece.usual
            cell = int(outputs.cell[0, piece.prototype])
            assert piece.box == GEOMETRY.cell_box(cell, head.bundle.manifest.graph.cells)
            assert piece.source.image == f"train/{piece.prototype}.jpg"
        assert not any(piece.child == contrast.instead and not piece.found for piece in contrast.evidence)
        for pieces in (contrast.evidence, contrast.missing):
            sizes = [abs(piece.difference) for piece in pieces]
            assert sizes == sorted(sizes, reverse=True)
    assert listed > 3


def test_without_leaves_what_is_off_out_of_the_differences(tmp_path: Path) -> None:
    head = random_head(3, tmp_path)
    similarity = np.random.default_rng(3).uniform(0, 3, (1, len(head.usual)))
    table = head.table
    replaced = similarity.copy()
    replaced[0, [0, 2]] = head.usual[[0, 2]]
    for name in head.bundle.taxonomy.names:
        options = PredictOptions(contrast=name, without=(0, 2)).resolved(table)
        [found] = predictions(head.outputs(similarity), table, [GEOMETRY], options)
        [wanted] = asked(head, head.outputs(replaced), name, top_k=5)
        assert found.without == [0, 2]
        for key in ("relation", "level", "predicted", "instead"):
            assert getattr(found.contrast, key) == getattr(wanted.contrast, key)
        assert contrast_of(found).logit_difference == pytest.approx(contrast_of(wanted).logit_difference, abs=1e-4)


# ---- the runtimes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edge(bundle: BundleFactory) -> Bundle:
    return read_bundle(bundle("contrast", ("onnx", "onnx-routed", "torchscript", "openvino")))


@pytest.mark.parametrize("target", ["onnx", "onnx-routed", "torchscript", "openvino"])
def test_differences_add_up_on_every_runtime(target: str, edge: Bundle, tiny_run: Path) -> None:
    pictures = np.load(tiny_run / "samples.npy")[:4]
    routed = TARGETS[target].run(edge.file(target))(pictures) if target == "onnx-routed" else {}
    arrays: dict[str, Any] = dict(
        TARGETS["onnx" if routed else target].run(edge.file("onnx" if routed else target))(pictures)
    )
    outputs, table = Outputs(**arrays), EvidenceTable.of(edge)
    for node, name in enumerate(edge.taxonomy.names):
        options = PredictOptions(top_k=0, contrast=name).resolved(table)
        for image, prediction in enumerate(predictions(outputs, table, [GEOMETRY] * 4, options)):
            contrast = contrast_of(prediction)
            if contrast.relation == "predicted":
                assert node in outputs.path[image]
                continue
            assert contrast.predicted is not None and contrast.instead is not None
            ours, theirs = edge.taxonomy.index[contrast.predicted], edge.taxonomy.index[contrast.instead]
            evidence = None if table.switches is None else table.switches.evidence
            assert evidence is not None and contrast.level is not None
            layer = evidence.layer_of(ours)
            slope = layer.weight[evidence.member_of[ours]] - layer.weight[evidence.member_of[theirs]]
            total = slope @ (outputs.similarity[image, layer.prototypes] - layer.usual)
            assert contrast.rest == pytest.approx(total, abs=1e-4)
            if routed:
                assert outputs.logit[image, ours] == pytest.approx(
                    routed["path_logit"][image, contrast.level - 1], abs=1e-4
                )


def test_an_ensemble_compares_the_prototypes_of_all_members(
    tiny_bundle: Path, twin_bundle: Path, photograph: Path
) -> None:
    ensemble = load([tiny_bundle, twin_bundle], device="cpu")
    for name in ensemble.taxonomy.names:
        prediction = ensemble.predict(photograph, top_k=ensemble.table.top_k, contrast=name)
        contrast = contrast_of(prediction)
        if contrast.relation == "predicted":
            continue
        assert contrast.level is not None and contrast.logit_difference is not None and contrast.rest is not None
        logit = prediction.levels[contrast.level - 1].logit
        assert contrast.predicted == prediction.levels[contrast.level - 1].node
        assert logit is not None and contrast.logit_difference > 0
        pieces = [*contrast.evidence, *contrast.missing]
        assert {piece.member for piece in pieces} <= {0, 1}
        told = sum(piece.difference for piece in pieces) + contrast.rest + (contrast.prior_difference or 0.0)
        assert told == pytest.approx(contrast.logit_difference, abs=1e-9)


# ---- bundles of format 1 --------------------------------------------------------------------------------------------


def every_contrast(bundle: Bundle, photograph: Path) -> list[Contrast]:
    classifier = load(bundle, device="cpu")
    return [contrast_of(classifier.predict(photograph, contrast=name)) for name in bundle.taxonomy.names]


def test_an_older_bundle_centred_since_compares_as_a_new_one(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    found = every_contrast(older_bundle(read_bundle(tiny_bundle), tmp_path / "older", usual=True), photograph)
    expected = every_contrast(read_bundle(tiny_bundle), photograph)
    assert {contrast.relation for contrast in expected} >= {"predicted", "beside"}
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.relation, ours.predicted, ours.instead) == (theirs.relation, theirs.predicted, theirs.instead)
        assert [piece.prototype for piece in ours.evidence] == [piece.prototype for piece in theirs.evidence]
        assert ours.logit_difference == pytest.approx(theirs.logit_difference, abs=1e-4)
        assert ours.rest == pytest.approx(theirs.rest, abs=1e-4)


def test_an_older_bundle_that_was_not_centred_compares_by_sums_that_hold(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    for contrast in every_contrast(older_bundle(read_bundle(tiny_bundle), tmp_path / "older"), photograph):
        if contrast.relation == "beside":
            assert contrast.prior_difference is not None and contrast.rest is not None
            pieces = [*contrast.evidence, *contrast.missing]
            total = contrast.prior_difference + sum(piece.difference for piece in pieces) + contrast.rest
            assert total == pytest.approx(contrast.logit_difference, abs=1e-4)


def test_an_older_bundle_without_weights_says_what_to_do(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="export"):
        every_contrast(older_bundle(read_bundle(tiny_bundle), tmp_path / "older", weights=False), photograph)
