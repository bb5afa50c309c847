"""Curated bundles: exact, traceable, never in place, and complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.bundling import export_bundle
from export.curating import Source, curate
from export.curation_request import EPOCH
from export.targets.table import TARGETS
from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.cli.root import main
from protoserve.data.dataset import read_split
from protoserve.errors import InputError
from protoserve.files import DRAFT
from protoserve.graph_signature import OUTPUT_NAMES
from protoserve.images.fitting import fit
from protoserve.inference.classifier import load
from protoserve.inference.engine import Engine
from protoserve.inference.switching import Switches
from protoserve.run.folder import open_run
from protoserve.run.similarities import KeptImages, KeptSimilarities, write_similarities

OFF = [1, 6, 14]


def link(
    disabled: list[int] | None = None,
    required: list[int] | None = None,
    restored: list[int] | None = None,
    *,
    refitted: bool = False,
) -> CurationLink:
    return CurationLink(
        before="",
        disabled=disabled or [],
        required=required or [],
        restored=restored or [],
        refitted=refitted,
        reason="the wall",
        by="Ann",
        at="2026-01-01T00:00:00Z",
    )


@pytest.fixture(scope="module")
def pictures(tiny_run: Path) -> NDArray[np.uint8]:
    pictures: NDArray[np.uint8] = np.load(tiny_run / "samples.npy")
    return pictures


@pytest.fixture(scope="module")
def made(learned: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle, Path]:
    """(bundle, curated bundle, data): ONNX only, made without the run."""
    folder = tmp_path_factory.mktemp("curated")
    bundle = export_bundle(open_run(learned[0]), folder / "bundle")
    curated = curate(bundle, link(OFF, [3]), folder / "new", Source(data=learned[1]))
    return bundle, curated.bundle, learned[1]


def test_answers_are_those_as_if_the_prototypes_were_off(
    made: tuple[Bundle, Bundle, Path], pictures: NDArray[np.uint8]
) -> None:
    bundle, curated, _ = made
    expected = Switches(bundle).without(Engine(bundle, device="cpu").run(pictures), OFF)
    found = Engine(curated, device="cpu").run(pictures)
    for name in ("log_probability", "logit", "similarity", "evidence_contribution", "positive_contribution"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-4), name
    assert (found.path == expected.path).all()


def test_predictions_add_up_and_never_show_what_is_off(
    made: tuple[Bundle, Bundle, Path], pictures: NDArray[np.uint8]
) -> None:
    _, curated, _ = made
    classifier = load(curated.directory, device="cpu")
    for prediction in classifier.predict(list(pictures), top_k=curated.top_k):
        for level in prediction.levels:
            pieces = [*level.evidence, *level.against]
            assert not {piece.prototype for piece in pieces} & set(OFF)
            if level.logit is not None and level.prior is not None:
                told = level.prior + sum(piece.contribution for piece in pieces)
                assert told == pytest.approx(level.logit, abs=1e-4)


def test_the_chain_says_who_did_what_when_and_why(made: tuple[Bundle, Bundle, Path]) -> None:
    bundle, curated, data = made
    [last] = curated.manifest.curation
    assert last.before == bundle.version != curated.version
    assert (last.by, last.at, last.reason, last.disabled) == ("Ann", "2026-01-01T00:00:00Z", "the wall", OFF)
    assert sorted(curated.curation.off) == OFF and list(curated.curation.required) == [3]
    assert curated.manifest.truth is None and curated.manifest.metrics.test is None
    # The accuracy by hand, on the val split.
    val = read_split(data, "val", curated.taxonomy)
    fitted = np.stack([fit(val.picture(index), curated.input).array for index in range(len(val))])
    accuracy = last.accuracy
    assert accuracy is not None and accuracy.split == "val" and accuracy.images == len(val)
    leaves = np.array(curated.taxonomy.leaves)
    for opened, told in ((bundle, accuracy.before), (curated, accuracy.after)):
        chosen = Engine(opened, device="cpu").run(fitted).log_probability[:, leaves].argmax(axis=1)
        assert told["leaf"] == pytest.approx((chosen == val.leaves).mean())


def test_the_bundle_itself_stays_and_is_never_the_place_to_write(made: tuple[Bundle, Bundle, Path]) -> None:
    bundle, _, _ = made
    assert read_bundle(bundle.directory).manifest == bundle.manifest
    with pytest.raises(InputError, match="never changed in place"):
        curate(bundle, link([0]), bundle.directory, overwrite=True)


def test_the_files_own_manifest_tells_the_chain_too(made: tuple[Bundle, Bundle, Path]) -> None:
    import onnxruntime

    _, curated, _ = made
    session = onnxruntime.InferenceSession(str(curated.file("onnx")), providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["protoserve"])
    assert manifest["curation"] == [link.model_dump(mode="json") for link in curated.manifest.curation]


def test_restoring_gives_the_old_answers_bit_for_bit(
    made: tuple[Bundle, Bundle, Path], pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    bundle, curated, _ = made
    back = curate(curated, link(restored=[*OFF, 3]), tmp_path / "back")
    assert not back.bundle.curation.off and not back.bundle.curation.required
    assert len(back.bundle.manifest.curation) == 2 and any("accuracy" in note for note in back.notes)
    old, new = (Engine(opened, device="cpu").run(pictures) for opened in (bundle, back.bundle))
    assert all((getattr(old, name) == getattr(new, name)).all() for name in OUTPUT_NAMES)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (link([99]), {}, "no prototype 99"),
        (link([1]), {}, "--disable 1: it is off already"),
        (link([3]), {}, "--disable 3: it is required, by Ann"),
        (link([0], refitted=True), {}, "give --refit RUN"),
        (link([0]), {"drop": ["onnx"]}, "--drop onnx: a bundle always holds"),
        (link([0]), {"drop": ["onx-edge"]}, "the bundle has only onnx"),
    ],
)
def test_what_can_not_be_done_is_refused_and_writes_nothing(
    made: tuple[Bundle, Bundle, Path], asked: CurationLink, options: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        curate(made[1], asked, tmp_path / "new", drop=options.get("drop", ()))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def refitted(learned: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle, Path]:
    """(bundle, the same refitted without `OFF`, run): the run keeps similarities, as new ones do."""
    folder = tmp_path_factory.mktemp("refitted")
    run = shutil.copytree(learned[0], folder / "run")
    bundle = export_bundle(open_run(run), folder / "bundle")
    train = read_split(learned[1], "train", bundle.taxonomy)
    fitted = np.stack([fit(train.picture(index), bundle.input).array for index in range(len(train))])
    similarity = Engine(bundle, device="cpu").run(fitted).similarity
    # Every other selection image is of another class, so that a refit to chance is not taken for certain.
    mixed = np.where(np.arange(len(train)) % 2, train.leaves, (train.leaves + 1) % len(bundle.taxonomy.leaves))
    fitted_on, selection = (KeptImages(train.images, leaves, similarity) for leaves in (train.leaves, mixed))
    write_similarities(KeptSimilarities(fitted_on, selection, mirrored=False), run)
    curated = curate(bundle, link(OFF, [3], refitted=True), folder / "new", Source(run=open_run(run)))
    assert any("refitted with penalty" in note for note in curated.notes)
    return bundle, curated.bundle, run


def test_a_refit_leaves_nothing_of_what_is_off(
    refitted: tuple[Bundle, Bundle, Path], pictures: NDArray[np.uint8]
) -> None:
    bundle, curated, _ = refitted
    assert all(curated.prototypes[number].weight == 0.0 for number in OFF)
    assert curated.prototypes[3].weight == bundle.prototypes[3].weight
    found, switches = Engine(curated, device="cpu").run(pictures), Switches(curated)
    assert found.logit == pytest.approx(switches.evidence.logits([found]), abs=1e-4)
    assert curated.manifest.prior != bundle.manifest.prior


def test_what_a_refit_took_out_comes_back_only_with_another(
    refitted: tuple[Bundle, Bundle, Path], tmp_path: Path
) -> None:
    _, curated, run = refitted
    with pytest.raises(InputError, match=r"--restore 1: a refit has left it without weights; add --refit RUN"):
        curate(curated, link(restored=[1]), tmp_path / "new")
    back = curate(curated, link(restored=[1], refitted=True), tmp_path / "new", Source(run=open_run(run)))
    assert sorted(back.bundle.curation.off) == [6, 14]
    assert back.bundle.prototypes[1].weight != 0.0 and back.bundle.prototypes[6].weight == 0.0


@pytest.mark.slow
@pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="exports for a minute: make test-faults")
def test_every_runtime_of_a_curated_bundle_adds_up(
    learned: tuple[Path, Path], pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    targets = ("onnx", "onnx-routed", "torchscript", "openvino")
    run = open_run(learned[0])
    made = export_bundle(run, tmp_path / "bundle", targets)
    with pytest.raises(InputError, match="its target onnx-routed can't be changed"):
        curate(made, link(OFF), tmp_path / "new")
    curated = curate(made, link(OFF), tmp_path / "new", Source(run=run)).bundle
    expected = Switches(made).without(Engine(made, device="cpu").run(pictures), OFF)
    layers = Switches(curated).evidence
    for target in targets:
        found = TARGETS[target].run(curated.file(target))(pictures)
        if target == "onnx-routed":
            certain = np.flatnonzero(found["certain"])
            assert len(certain)
            on_path = expected.path[certain] >= 0
            logit = np.take_along_axis(expected.logit[certain], np.maximum(expected.path[certain], 0), axis=1)
            assert (found["path"][certain] == expected.path[certain]).all()
            assert found["path_logit"][certain][on_path] == pytest.approx(logit[on_path], abs=1e-4)
            continue
        assert found["logit"] == pytest.approx(expected.logit, abs=1e-4), target
        assert found["log_probability"] == pytest.approx(expected.log_probability, abs=1e-3), target
        outputs = Engine(curated, device="cpu").run(pictures)
        assert found["logit"] == pytest.approx(layers.logits([outputs]), abs=1e-4), target


@pytest.mark.slow
@pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes minutes: make test-faults")
def test_a_curation_that_is_killed_leaves_the_old_bundle_and_repeats_the_same(
    made: tuple[Bundle, Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, _ = made
    monkeypatch.setenv(EPOCH, "1767225600")
    output = tmp_path / "new"
    arguments = ["curate", str(bundle.directory), "--disable", "1,6", "--reason", "the wall", "--by", "Ann"]
    arguments += ["--output", str(output)]
    context = get_context("spawn")
    for seen in ("parity.json", ""):
        process = context.Process(target=main, args=(arguments,))
        process.start()
        # The draft copies the bundle, then writes its report, then its manifest.
        while process.is_alive() and not any(tmp_path.glob(f"{DRAFT}*/{seen}") if seen else tmp_path.glob(f"{DRAFT}*")):
            time.sleep(0.002)
        process.kill()
        process.join()
        assert read_bundle(bundle.directory).version == bundle.version
        if output.exists():
            assert read_bundle(output).curation.off
            shutil.rmtree(output)
    versions: list[str] = []
    for place in (output, tmp_path / "again"):
        arguments[-1] = str(place)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        versions.append(read_bundle(place).version)
    assert versions[0] == versions[1]
