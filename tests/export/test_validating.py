"""The scores of an exported graph against the service's own answers, picture by picture."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from export.validating import validate
from protoserve.bundle.folder import read_bundle
from protoserve.data.dataset import read_split
from protoserve.errors import InputError
from protoserve.inference.classifier import load
from tests.promises import promising, sure_above


@pytest.mark.parametrize("batch", [1, 4])
def test_the_accuracy_is_the_share_of_pictures_that_are_predicted_right(
    edge_bundle: Path, learned: tuple[Path, Path], batch: int
) -> None:
    _, data = learned
    steps: list[tuple[int, int]] = []
    report = validate(
        edge_bundle, data, "train", device="cpu", batch=batch, advance=lambda done, total: steps.append((done, total))
    )
    taxonomy = read_bundle(edge_bundle).taxonomy
    dataset = read_split(data, "train", taxonomy)
    classifier = load(edge_bundle, device="cpu")
    right = [
        "/".join(classifier.predict(dataset.picture(index).picture).path)
        == taxonomy.names[taxonomy.leaves[dataset.leaves[index]]]
        for index in range(len(dataset))
    ]
    assert 0 < sum(right) < len(right)
    assert report.accuracy["leaf"] == pytest.approx(np.mean(right))
    assert report.images == len(right) and report.seconds >= 0
    assert sum(done for done, _ in steps) == len(right) and {total for _, total in steps} == {len(right)}


def test_broken_pictures_are_listed_or_left_out_and_counted(
    tiny_bundle: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    data = shutil.copytree(learned[1], tmp_path / "data")
    first, second, *others = sorted((data / "train").rglob("*.png"))
    first.write_bytes(b"")
    second.with_name("notes.txt").write_text("not a picture")
    with pytest.raises(InputError, match=r"1 picture can't be read: train/.* \(is empty\); .*--skip-broken"):
        validate(tiny_bundle, data, "train", device="cpu")
    report = validate(tiny_bundle, data, "train", device="cpu", skip_broken=True)
    assert report.images == 1 + len(others) and report.passed_over == {"other_suffix": 1, "broken": 1}


def test_the_promise_is_scored_by_the_answers_that_the_service_gives(
    calibrated_bundle: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    taxonomy = read_bundle(calibrated_bundle).taxonomy
    bundle = promising(calibrated_bundle, tmp_path / "promising", sure_above(taxonomy, 0.5, groups=3))
    report = validate(bundle.directory, learned[1], "train", device="cpu", batch=4)
    assert report.promise is not None and list(report.promise) == ["0.9", "0.95", "0.99"]
    dataset, classifier = read_split(learned[1], "train", taxonomy), load(bundle, device="cpu")
    pictures = [dataset.file(index) for index in range(len(dataset))]
    truth = [taxonomy.names[taxonomy.leaves[leaf]] for leaf in dataset.leaves]
    for stated, found in report.promise.items():
        answers = [prediction.answer for prediction in classifier.predict(pictures, precision=float(stated))]
        levels = [0 if answer is None else answer.level for answer in answers]
        assert found.answered == {
            **{f"level_{level}": levels.count(level) for level in range(1, taxonomy.depth + 1)},
            "all": sum(level > 0 for level in levels),
        }
        right = [
            answer is not None and answer.node is not None and f"{leaf}/".startswith(f"{answer.node}/")
            for answer, leaf in zip(answers, truth, strict=True)
        ]
        assert found.right["all"] == sum(right) and found.images == len(truth)
        assert found.resplits is not None and found.resplits.rounds == 100
    assert 0 < report.promise["0.9"].answered["all"] < len(truth)


def test_a_bundle_without_a_promise_has_none_to_score(tiny_bundle: Path, learned: tuple[Path, Path]) -> None:
    assert validate(tiny_bundle, learned[1], "val", device="cpu").promise is None


def test_pictures_of_an_inner_node_count_down_to_there(
    tiny_bundle: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    data = shutil.copytree(learned[1], tmp_path / "data")
    for picture in sorted((data / "train" / "Animal" / "Ape").rglob("*.png")):
        picture.rename(data / "train" / "Animal" / "Ape" / f"{picture.parent.name}-{picture.name}")
    whole, part = (validate(tiny_bundle, folder, "train", device="cpu") for folder in (learned[1], data))
    assert part.images == whole.images and part.inner > 0 and not part.passed_over
    # Level 1 compares the same nodes; the leaves below Ape are not compared any more.
    assert part.accuracy["level_1"] == whole.accuracy["level_1"]
    assert part.siblings["Animal"] == whole.siblings["Animal"] and "Animal/Ape" not in part.siblings
