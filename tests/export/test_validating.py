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
