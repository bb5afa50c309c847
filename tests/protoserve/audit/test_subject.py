"""The audited model, on a real bundle: contributions, boxes and evidence as the predictions state them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from protoserve.audit.subject import BATCH, LOG_FLOOR, Subject, levels_of, pieces_of
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import BundleError
from protoserve.graph_signature import MISSING_RANK
from protoserve.images.geometry import Geometry
from protoserve.inference.classifier import load
from protoserve.inference.engine import Engine
from tests.protoserve.audit.toys import ToyEngine, sample, subject


@pytest.fixture(scope="module", params=["tiny_bundle", "flat_bundle"])
def opened(request: pytest.FixtureRequest) -> Bundle:
    return read_bundle(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def real(opened: Bundle) -> Subject:
    return Subject.of(opened, Engine(opened, device="cpu"))


def noise(subject: Subject, images: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 255, (images, 8, 12, 3), dtype=np.uint8)
    return small.repeat(subject.size[0] // 8, axis=1).repeat(subject.size[1] // 12, axis=2)


def test_contributions_are_those_of_the_graph(real: Subject) -> None:
    outputs = real.run(noise(real, 5))
    pieces = pieces_of(outputs)
    assert pieces
    for piece in pieces:
        prototypes, contributions = real.contributions(piece.node, outputs.similarity[piece.image])
        own = dict(zip(prototypes.tolist(), contributions.tolist(), strict=True))
        assert [own[prototype] for prototype in piece.prototypes.tolist()] == pytest.approx(
            piece.contributions.tolist(), abs=1e-5
        )
        # The list holds the first ones in the order, as far as they are positive; what is missing counts less in it.
        layer = real.layers[real.places[piece.node][0]]
        missing = outputs.similarity[piece.image][prototypes] <= layer.usual
        order = np.argsort(-np.where(missing, MISSING_RANK, 1.0) * contributions, kind="stable")
        first = [value for value in contributions[order].tolist() if value > 0][: len(piece.contributions)]
        assert piece.contributions.tolist() == pytest.approx(first, abs=1e-5)
        logit = float(real.prior[piece.node]) + contributions.sum()
        assert logit == pytest.approx(float(outputs.logit[piece.image, piece.node]), abs=1e-4)


def test_own_weights_are_those_of_the_manifest(real: Subject, opened: Bundle) -> None:
    weight, usual = real.own_weights()
    assert weight.tolist() == pytest.approx([record.weight for record in opened.prototypes], abs=1e-5)
    assert usual.tolist() == pytest.approx([record.usual for record in opened.prototypes], abs=1e-5)


def test_evidence_and_boxes_are_those_of_predictions(opened: Bundle, real: Subject) -> None:
    classifier = load(opened, device="cpu")
    picture = np.random.default_rng(1).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    fitted = classifier.fit(picture)
    (prediction,) = classifier.predict_fitted([fitted], top_k=opened.top_k)
    pieces = pieces_of(real.run(fitted.array[None]))
    told = [level for level in prediction.levels if level.evidence]
    assert [piece.level for piece in pieces] == [level.level for level in told] == levels_of(pieces)
    for piece, level in zip(pieces, told, strict=True):
        assert piece.prototypes.tolist() == [evidence.prototype for evidence in level.evidence]
        boxes = [real.box_in(fitted.geometry, cell) for cell in piece.cells.tolist()]
        assert boxes == [evidence.box for evidence in level.evidence]


def test_the_boxes_at_model_size_tile_the_input(real: Subject) -> None:
    height, width = real.size
    covered = np.zeros((height, width), dtype=int)
    for cell in range(real.cells):
        left, top, right, bottom = real.box(cell)
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert real.box(1) == real.box_in(Geometry(width, height, width, height, 1.0, 1.0, 0.0, 0.0), 1)


def test_batches_change_nothing() -> None:
    toy = subject()
    arrays = np.concatenate([sample(12).arrays] * 4)
    assert len(arrays) > BATCH
    done: list[int] = []
    whole = toy.run(arrays, done.append)
    assert sum(done) == len(arrays) and len(done) == 2
    assert (whole.logit[:12] == whole.logit[36:]).all()
    assert toy.log_probability(arrays) == pytest.approx(whole.log_probability)


def test_log_probabilities_have_a_floor() -> None:
    toy = subject(ToyEngine(maps=lambda images: np.full((len(images), 4, 4, 4), [[[[0]], [[0]], [[99]], [[0]]]])))
    found = toy.log_probability(sample(2).arrays)
    assert found[:, 0].tolist() == [LOG_FLOOR, LOG_FLOOR] and found[:, 1].tolist() == [0.0, 0.0]


def test_a_bundle_without_weights_is_refused(opened: Bundle, tmp_path: Path) -> None:
    shutil.copytree(opened.directory, tmp_path / "old")
    older = Bundle(tmp_path / "old", opened.manifest.model_copy(update={"weights": None}))
    with pytest.raises(BundleError, match="holds no last-layer weights"):
        Subject.of(older, ToyEngine())
