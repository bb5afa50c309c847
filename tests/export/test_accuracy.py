"""The pictures that lower precision is judged on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.accuracy import in_batches, judging_data
from protoserve.data.folders import taxonomy_of_folders
from protoserve.errors import InputError
from protoserve.run.folder import open_run


def test_batches_that_must_be_whole_start_over() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.uint8)
    assert [batch[:, 0, 0, 0].tolist() for batch in in_batches(pictures, 3)] == [[0, 1, 2], [3, 4]]
    assert [batch[:, 0, 0, 0].tolist() for batch in in_batches(pictures, 3, whole=True)] == [[0, 1, 2], [3, 4, 0]]


def test_calibration_pictures_were_learned_from_and_validation_pictures_not(learned: tuple[Path, Path]) -> None:
    run, data = learned
    taxonomy = taxonomy_of_folders(data / "train")
    held = judging_data(open_run(run), data, taxonomy)
    assert all(image.startswith("train/") for image in held.calibration.images)
    assert all(image.startswith("val/") for image in held.validation.images)


def test_without_val_the_run_s_own_hold_out_is_validated_on(learned: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(learned[0], run)
    shutil.copytree(learned[1], data)
    shutil.rmtree(data / "val")
    with pytest.raises(InputError, match="held out no images"):
        judging_data(open_run(run), data, taxonomy_of_folders(data / "train"))
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["config"]["data"]["hold_out"] = 0.3
    (run / "provenance.json").write_text(json.dumps(provenance))
    held = judging_data(open_run(run), data, taxonomy_of_folders(data / "train"))
    assert len(held.validation)
    assert not set(held.validation.images) & set(held.calibration.images)


def test_another_data_set_is_refused(learned: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = learned
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data" / "train").rglob("*.png")).unlink()
    with pytest.raises(InputError, match="this is not the data set"):
        judging_data(open_run(run), tmp_path / "data", taxonomy_of_folders(data / "train"))
