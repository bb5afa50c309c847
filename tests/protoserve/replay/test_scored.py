"""Answers of scored files are made again, and other files are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

import protoserve
from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load
from protoserve.replay.scored import read_scored
from protoserve.scoring.local import SCHEMA, Job, join_parts, open_parts, score_part, write_part


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


@pytest.fixture(scope="module")
def scored(model: Classifier, photograph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of the photograph, with a byte more, and of a file that is not a picture."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copy(photograph, folder / "one.jpg")
    (folder / "two.jpg").write_bytes(photograph.read_bytes() + b"\0")
    (folder / "none.jpg").touch()
    job, output = Job(str(folder), ("none.jpg", "one.jpg", "two.jpg"), model.bundle.version, 2), folder / "s.parquet"
    directory, _ = open_parts(job, output)
    write_part(score_part(job, 0, model), directory, 0)
    assert join_parts(job, directory, output) == (3, 1)
    return output


def test_the_answer_of_a_row_is_made_again(
    scored: Path, tiny_bundle: Path, twin_bundle: Path, photograph: Path
) -> None:
    result = protoserve.verify(scored, photograph, tiny_bundle, device="cpu")
    assert (result.differences, result.notes) == ((), ())
    assert not protoserve.verify(scored, photograph, twin_bundle, device="cpu").same


def test_a_row_keeps_of_an_answer_what_it_says(scored: Path, model: Classifier, photograph: Path) -> None:
    expected = model.predict(photograph, top_k=2, alternatives=0)
    found = read_scored(scored, expected.image.sha256)
    assert found["path"] == expected.path and found["options"] == expected.options
    assert found["model"] == {"version": expected.model.version} and found["answer"] is None
    for level, wanted in zip(found["levels"], expected.levels, strict=True):
        assert (level["level"], level["node"]) == (wanted.level, wanted.node)
        assert [piece["prototype"] for piece in level["evidence"]] == [piece.prototype for piece in wanted.evidence]
        assert [tuple(piece["box"]) for piece in level["evidence"]] == [piece.box for piece in wanted.evidence]


def test_another_picture_and_other_files_are_refused(scored: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no answer to this picture"):
        read_scored(scored, "0" * 64)
    older = tmp_path / "older.parquet"
    columns = [name for name in SCHEMA.names if name != "sha256"]
    parquet.write_table(parquet.read_table(scored, columns=columns).replace_schema_metadata({}), older)
    with pytest.raises(InputError, match="score the pictures again"):
        read_scored(older, "0" * 64)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_scored(tmp_path / "torn.parquet", "0" * 64)
    with pytest.raises(InputError, match="can't read it"):
        read_scored(tmp_path / "gone.parquet", "0" * 64)
