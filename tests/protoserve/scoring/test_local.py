"""Scoring in parts: the rows, unreadable files, sources, and parts of an earlier run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet

from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load
from protoserve.scoring.local import Job, find_images, join_parts, open_parts, score_part, write_part


def score_all(model: Classifier, source: Path, output: Path, *, top_k: int = 1, part: int = 1000) -> tuple[int, int]:
    """Score `source` part by part into `output`; the numbers of rows and of errors."""
    root, images = find_images(source)
    job = Job(str(root), images, model.bundle.version, top_k, part)
    directory, missing = open_parts(job, output)
    for index in missing:
        write_part(score_part(job, index, model), directory, index)
    return join_parts(job, directory, output)


def test_rows_equal_the_python_interface_and_bad_files_have_an_error(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.parquet"
    model = load(tiny_bundle, device="cpu")
    assert score_all(model, pictures, output, top_k=2, part=4) == (9, 2)
    rows = parquet.read_table(output).to_pylist()
    names = ["0.png", "2.png", "4.png", "6.png", "more/1.png", "more/3.png", "more/5.png", "none.jpg", "torn.png"]
    assert [row["image"] for row in rows] == names
    for row in rows[:7]:
        expected = model.predict(pictures / row["image"], top_k=2)
        assert (row["error"], row["code"], row["model"]) == (None, None, expected.model.version)
        assert (row["width"], row["height"]) == (expected.image.width, expected.image.height)
        assert row["node"] == expected.levels[-1].node
        assert [level["node"] for level in row["levels"]] == [level.node for level in expected.levels]
        for stored, level in zip(row["levels"], expected.levels, strict=True):
            assert stored["probability"] == pytest.approx(level.probability, abs=1e-4)
        evidence = [(level.level, one) for level in expected.levels for one in level.evidence]
        assert [(one["level"], one["prototype"]) for one in row["evidence"]] == [
            (level, one.prototype) for level, one in evidence
        ]
        assert [tuple(one["box"]) for one in row["evidence"]] == [one.box for _, one in evidence]
    assert [row["code"] for row in rows[7:]] == ["unsupported_image", "broken_image"]
    assert all((row["node"] is None and "send" in row["error"]) or "convert" in row["error"] for row in rows[7:])
    assert not list(tmp_path.glob("*.parts")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_names_the_pictures(tiny_bundle: Path, pictures: Path, tmp_path: Path, suffix: str) -> None:
    import pyarrow

    names = ["more/5.png", "missing.png", "0.png"]
    table = pictures / f"list{suffix}"
    if suffix == ".csv":
        table.write_text("image,note\n" + "".join(f"{name},x\n" for name in names))
    else:
        parquet.write_table(pyarrow.table({"image": names}), table)
    output = tmp_path / "scores.parquet"
    assert score_all(load(tiny_bundle, device="cpu"), table, output) == (3, 1)
    rows = parquet.read_table(output).to_pylist()
    assert [row["image"] for row in rows] == names
    assert rows[1]["code"] == "unreadable_file"
    assert "no such image" in rows[1]["error"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda place: place.mkdir(), "holds no pictures"),
        (lambda place: place.write_text("x"), "give a folder, a .csv or a .parquet file"),
        (lambda place: None, "give a folder, a .csv or a .parquet file"),
    ],
)
def test_a_source_without_pictures_is_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(InputError, match=said):
        find_images(tmp_path / "source")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name\na\n", "no column 'image'"),
        ("image\n", "no rows"),
        ("", "no column"),
        ("note,image\nx,a.png\ny\n", "row 2: 1 cells under 2 columns"),
        ("image,note\na.png,x\n,y\n", "row 2, column 'image': is empty"),
    ],
)
def test_a_table_without_pictures_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        find_images(tmp_path / "list.csv")


def test_a_row_without_a_picture_in_a_parquet_table_is_named(tmp_path: Path) -> None:
    import pyarrow

    parquet.write_table(pyarrow.table({"image": ["a.png", None]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="row 2, column 'image': is empty"):
        find_images(tmp_path / "list.parquet")


def test_only_hidden_entries_below_the_folder_are_skipped(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / ".thumbnails").mkdir()
    shutil.copy(pictures / "0.png", pictures / ".thumbnails" / "0.png")
    monkeypatch.chdir(pictures / "more")
    _, above = find_images(Path(".."))
    assert above == find_images(pictures)[1]
    assert len(above) == 9
    hidden = pictures.rename(pictures.parent / ".pictures")
    assert find_images(hidden)[1] == above


def test_a_run_killed_before_its_first_part_begins_anew(tmp_path: Path) -> None:
    job, output = Job("/", ("a.png",), "sha256:0", 1), tmp_path / "scores.parquet"
    directory, _ = open_parts(job, output)
    # Killed while the note was being written, and before.
    (directory / "job.json").rename(directory / ".draft-01234567.job.json")
    assert open_parts(job, output) == (directory, [0])
    assert [file.name for file in directory.iterdir()] == ["job.json"]
    (directory / "job.json").unlink()
    assert open_parts(job, output) == (directory, [0])
