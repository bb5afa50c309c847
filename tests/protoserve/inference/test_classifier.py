"""`load(bundle).predict(images)`: every kind of source, lists, batches and errors that name the item."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import protoserve
from protoserve.bundle.folder import read_bundle
from protoserve.errors import ImageError, InputError
from protoserve.inference.classifier import BATCH, Classifier, load
from protoserve.schema import Level, Prediction
from tests.bundles import BundleFactory, RunOptions
from tests.promises import promising, sure_above


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


def close(one: Prediction, other: Prediction) -> bool:
    """Whether they are equal up to rounding, which may differ with the batch size."""
    if one.path != other.path or one.image != other.image:
        return False
    pairs = list(zip(one.levels, other.levels, strict=True))
    same_evidence = all(
        [found.prototype for found in left.evidence] == [found.prototype for found in right.evidence]
        for left, right in pairs
    )
    near = all(left.probability == pytest.approx(right.probability, abs=1e-4) for left, right in pairs)
    return same_evidence and near


def test_every_kind_of_source_gives_the_same_prediction(classifier: Classifier, photograph: Path) -> None:
    expected = classifier.predict(photograph)
    assert isinstance(expected, Prediction)
    with Image.open(photograph) as picture:
        array = np.asarray(picture)
        for file in (str(photograph), photograph.read_bytes()):
            assert classifier.predict(file) == expected
        # Pixels have no hash of a file, and so no id.
        size = expected.image.model_copy(update={"sha256": None})
        anonymous = expected.model_copy(update={"id": None, "image": size})
        for pixels in (picture, array):
            assert classifier.predict(pixels) == anonymous


def test_boxes_and_size_are_the_senders(classifier: Classifier, photograph: Path) -> None:
    prediction = classifier.predict(photograph)
    assert (prediction.image.width, prediction.image.height) == (200, 150)
    boxes = [evidence.box for level in prediction.levels for evidence in level.evidence]
    assert boxes
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 150
        # 12 × 8 cells over 200 × 150 pixels, rounded.
        assert right - left in (16, 17) and bottom - top in (18, 19)


def test_a_picture_turned_by_exif_is_answered_like_the_upright_one(classifier: Classifier, photograph: Path) -> None:
    with Image.open(photograph) as picture:
        upright = picture.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    assert classifier.predict(stream.getvalue()).levels == classifier.predict(upright).levels


def test_contributions_of_all_prototypes_add_up(classifier: Classifier, photograph: Path) -> None:
    fitted = classifier.fit(photograph)
    outputs = classifier.engine.run(fitted.array[None])
    limit = classifier.table.top_k
    levels = classifier.predict(photograph, top_k=limit).levels
    assert any(level.against for level in levels)
    for level in levels:
        for evidence in [*level.evidence, *level.against]:
            unusual = evidence.similarity - evidence.usual
            assert evidence.contribution == pytest.approx(evidence.weight * unusual, abs=1e-5)
            assert evidence.similarity == pytest.approx(outputs.similarity[0, evidence.prototype], abs=1e-5)
        assert_adds_up(level, limit)


def assert_adds_up(level: Level, limit: int) -> None:
    """Where all prototypes are shown, their contributions and the prior are the logit, and nothing rests."""
    if level.logit is None or level.prior is None or level.rest is None:
        assert level.evidence == level.against == []
        return
    told = sum(piece.contribution for piece in [*level.evidence, *level.against])
    assert level.prior + told + level.rest == pytest.approx(level.logit, abs=1e-6)
    if max(len(level.evidence), len(level.against)) < limit:
        assert level.rest == pytest.approx(0.0, abs=1e-4)
        assert level.evidence_share == pytest.approx(1.0, abs=1e-4)


def test_contributions_of_cosines_add_up(bundle: BundleFactory, photograph: Path) -> None:
    model = load(bundle("cosine", ("onnx", "torchscript"), similarity="cosine"), device="cpu")
    limit = model.table.top_k
    for level in model.predict(photograph, top_k=limit, maps=True).levels:
        for evidence in level.evidence:
            assert -1 - 1e-5 <= evidence.similarity <= 1 + 1e-5
            assert np.max(np.asarray(evidence.map)) == pytest.approx(evidence.similarity, abs=1e-5)
        assert_adds_up(level, limit)


def test_boxes_cover_the_cells_that_were_smoothed(bundle: BundleFactory, photograph: Path) -> None:
    options = RunOptions(latent="sphere", smoothing=3, hidden=20, zero=2.0)
    prediction = load(bundle("sphere", ("onnx", "torchscript"), **options), device="cpu").predict(photograph, top_k=1)
    boxes = [evidence.box for level in prediction.levels for evidence in level.evidence]
    assert boxes
    for left, top, right, bottom in boxes:
        # Three of 12 × 8 cells, or two at the border; a pixel for rounding.
        assert right - left >= 2 * 200 / 12 - 1
        assert bottom - top >= 2 * 150 / 8 - 1


def test_boxes_of_tiles_hold_all_that_the_resize_filter_reads(bundle: BundleFactory, photograph: Path) -> None:
    model = load(bundle("tiled", ("onnx", "torchscript"), tile=32, tile_step=16), device="cpu")
    prediction = model.predict(photograph, top_k=9, maps=True)
    pieces = [evidence for level in prediction.levels for evidence in level.evidence]
    assert pieces
    # 200 × 150 pixels on 96 × 64: 2.083 and 2.344 to a pixel of the model, of which tiles start every 16. So tile 1
    # reads from 15.5 · 2.083 = 32.3 to 48.5 · 2.083 = 101.0: the pixels whose centres lie between.
    lefts, rights = (0, 32, 66, 99, 132), (68, 101, 134, 168, 200)
    tops, bottoms = (0, 36, 74), (76, 114, 150)
    for evidence in pieces:
        row, column = divmod(int(np.asarray(evidence.map).argmax()), 5)
        assert evidence.box == (lefts[column], tops[row], rights[column], bottoms[row])


def test_a_flat_model_has_the_leafs_probability_and_evidence_alone(flat_bundle: Path, photograph: Path) -> None:
    model = load(flat_bundle, device="cpu")
    limit = model.table.top_k
    prediction = model.predict(photograph, top_k=limit, alternatives=10)
    *inner, leaf = prediction.levels
    assert all(level.logit is None and level.evidence == [] for level in inner)
    assert leaf.logit is not None and leaf.evidence and leaf.against
    (logarithms,) = model.engine.run(model.fit(photograph).array[None]).log_probability
    for level in prediction.levels:
        node = model.taxonomy.index["/".join(prediction.path[: level.level])]
        assert level.probability == pytest.approx(np.exp(float(logarithms[node])), abs=1e-5)


def test_levels_past_a_threshold_are_unknown(calibrated_bundle: Path, tiny_run: Path, photograph: Path) -> None:
    """Nothing is known among Animal's children; everything is elsewhere."""
    model = load(calibrated_bundle, device="cpu")
    pictures = [*np.load(tiny_run / "samples.npy")[:8], photograph]
    firsts = set()
    for prediction in model.predict(pictures):
        expected = [True, False, False] if prediction.path[0] == "Animal" else [True, True, True]
        assert [level.known for level in prediction.levels] == expected[: len(prediction.levels)]
        assert prediction.known_through_level == sum(expected[: len(prediction.levels)])
        firsts.add(prediction.path[0])
    assert "Animal" in firsts and len(firsts) > 1


def test_levels_never_contradict(classifier: Classifier) -> None:
    noise = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8) for seed in range(2 * BATCH + 3)]
    for prediction in classifier.predict(noise):
        names = [level.node for level in prediction.levels]
        assert names == ["/".join(prediction.path[: depth + 1]) for depth in range(len(names))]
        assert names[-1] in [classifier.taxonomy.names[leaf] for leaf in classifier.taxonomy.leaves]
        above = 1.0
        for level in prediction.levels:
            assert level.probability == pytest.approx(above * level.conditional, abs=1e-5)
            above = level.probability


def test_a_list_gives_a_list_in_order_over_several_batches(classifier: Classifier) -> None:
    pictures = [Image.new("RGB", (10 + number, 12), (number * 7 % 256, 3, 200)) for number in range(2 * BATCH + 1)]
    together = classifier.predict(pictures)
    assert [prediction.image.width for prediction in together] == [10 + number for number in range(2 * BATCH + 1)]
    for number in (0, BATCH - 1, BATCH, 2 * BATCH):
        assert close(together[number], classifier.predict(pictures[number]))
    assert classifier.predict([]) == []
    assert isinstance(classifier.predict((pictures[0],)), list)


def test_choices_shape_the_answer(classifier: Classifier, photograph: Path) -> None:
    bare = classifier.predict(photograph, top_k=0, alternatives=0)
    assert all(not level.evidence and not level.alternatives for level in bare.levels)
    one = classifier.predict(photograph, top_k=1, maps=True)
    maps = [evidence.map for level in one.levels for evidence in level.evidence]
    assert maps and all(np.array(heat).shape == (8, 12) for heat in maps)
    for level in one.levels:
        for evidence in level.evidence:
            assert np.max(np.array(evidence.map)) == pytest.approx(evidence.similarity, abs=1e-4)


def test_errors_name_the_item(classifier: Classifier, photograph: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("notes")
    with pytest.raises(ImageError, match=r"image 2 of the list: .*notes\.jpg is not a picture") as caught:
        classifier.predict([photograph, photograph, tmp_path / "notes.jpg"])
    assert caught.value.code == "unsupported_image"
    with pytest.raises(InputError, match=r"image 1 of the list: .*gone\.jpg: no such image"):
        classifier.predict([photograph, tmp_path / "gone.jpg"])
    with pytest.raises(ImageError, match="image 0 of the list: the image is damaged"):
        classifier.predict([photograph.read_bytes()[:300]])


def test_a_bad_choice_is_refused_before_any_image_is_read(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top_k must be from 0 to"):
        classifier.predict(tmp_path / "gone.jpg", top_k=99)


def test_the_package_offers_load(tiny_bundle: Path, photograph: Path) -> None:
    model = protoserve.load(tiny_bundle, threads=1)
    assert isinstance(model, protoserve.Classifier)
    assert model.bundle.name == "tiny" and model.engine.device in {"cpu", "cuda"}
    assert load(read_bundle(tiny_bundle), device="cpu").predict(photograph).path == model.predict(photograph).path


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        load(tmp_path / "nothing")


def test_a_promise_answers_and_a_restriction_is_told(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    plain = load(tiny_bundle, device="cpu").predict(photograph)
    assert plain.answer is None and plain.restriction is None
    taxonomy = read_bundle(tiny_bundle).taxonomy
    model = load(promising(tiny_bundle, tmp_path / "bundle", sure_above(taxonomy, 0.05, groups=3)), device="cpu")
    found = model.predict(photograph)
    # Nearly every calibration picture is right at any probability, so the answer is the leaf.
    assert found.answer is not None
    assert (found.answer.node, found.answer.reason) == ("/".join(plain.path), "confident")
    denied = model.predict(photograph, deny=["/".join(plain.path)], alternatives=9)
    assert denied.path != plain.path and denied.restriction is not None
    assert denied.restriction.unrestricted is not None and denied.restriction.unrestricted.path == plain.path
    assert denied.restriction.excluded == pytest.approx(plain.levels[-1].probability, abs=1e-6)
    assert denied.restriction.contradicted == (plain.levels[-1].probability > 0.5)
    names = {level.node for level in denied.levels} | {
        other.node for level in denied.levels for other in level.alternatives
    }
    assert "/".join(plain.path) not in names
    for level in denied.levels:
        total = level.probability + sum(other.probability for other in level.alternatives)
        assert total <= 1 + 1e-5
        if level.logit is not None and level.prior is not None and level.rest is not None:
            told = sum(piece.contribution for piece in [*level.evidence, *level.against])
            assert level.logit == pytest.approx(level.prior + told + level.rest, abs=1e-4)


@pytest.mark.parametrize("kind", ["flat", "ensemble"])
def test_restrictions_hold_for_flat_models_and_ensembles(bundle: BundleFactory, photograph: Path, kind: str) -> None:
    model = load(bundle(kind="flat") if kind == "flat" else [bundle(), bundle(seed=1)], device="cpu")
    plain = model.predict(photograph, top_k=3)
    other = model.predict(photograph, top_k=3, allow=["Tool"])
    assert other.path == ["Tool", "Blade", "Knife"] and other.answer is None
    assert other.levels[-1].probability == pytest.approx(1.0)
    assert other.restriction is not None and other.restriction.excluded > 0
    everything = model.predict(photograph, top_k=3, allow=["Tool", "Animal", "Scuba"])
    assert everything.path == plain.path and [level.evidence for level in everything.levels] == [
        level.evidence for level in plain.levels
    ]


def test_what_a_picture_resembles_does_not_depend_on_a_list(calibrated_bundle: Path, photograph: Path) -> None:
    model = load(calibrated_bundle, device="cpu")
    plain, same = model.predict(photograph), model.predict(photograph, allow=["Animal", "Tool", "Scuba"])
    assert [level.known for level in same.levels] == [level.known for level in plain.levels]
