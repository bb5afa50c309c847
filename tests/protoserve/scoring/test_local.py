"""Scoring in parts: the rows, unreadable files, sources, and parts of an earlier run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet

from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load
from protoserve.replay.verifying import verify
from protoserve.scoring.local import Job, answered, find_images, join_parts, open_parts, score_part, write_part
from tests.promises import promising, sure_above


def score_all(model: Classifier, source: Path, output: Path, *, top_k: int = 1, part: int = 1000) -> tuple[int, int]:
    """Score `source` part by part into `output`; the numbers of rows and of errors."""
    root, images, _ = find_images(source)
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
    above = find_images(Path("..")).images
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


# ---- files that are not pictures, odd names, folders of others -------------------------------------------------------


def test_files_that_are_passed_over_are_counted_and_kept_in_the_result(pictures: Path, tmp_path: Path) -> None:
    os.mkfifo(pictures / "pipe.jpg")
    (pictures / ".DS_Store").touch()
    found = find_images(pictures)
    assert found.passed_over == {"other_suffix": 1, "not_a_file": 1} and len(found.images) == 9
    job, output = Job(str(found.root), (), "sha256:0", 1), tmp_path / "scores.parquet"
    directory, _ = open_parts(job, output)
    join_parts(job, directory, output, found.passed_over)
    assert json.loads(parquet.read_schema(output).metadata[b"protoserve.passed_over"]) == found.passed_over


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no pictures \(passed over 1 file: 1 without the suffix"):
        find_images(tmp_path)


def test_a_linked_folder_is_scored_and_a_loop_is_an_error(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "pictures").symlink_to(pictures, target_is_directory=True)
    assert len(find_images(tmp_path / "links").images) == 9
    (pictures / "more" / "loop").symlink_to(pictures, target_is_directory=True)
    with pytest.raises(InputError, match="leads back to a folder above it"):
        find_images(pictures)


def test_a_name_that_is_not_utf8_and_a_pipe_are_rows(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (pictures / "0.png").rename(pictures / odd)
    os.mkfifo(pictures / "pipe")
    model, output = load(tiny_bundle, device="cpu"), tmp_path / os.fsdecode(b"s\xe9.parquet")
    job = Job(str(pictures), (odd, "2.png", "pipe"), model.bundle.version, 1)
    directory, _ = open_parts(job, output)
    write_part(score_part(job, 0, model), directory, 0)
    assert join_parts(job, directory, output) == (3, 1)
    rows = parquet.read_table(output.rename(tmp_path / "scores.parquet")).to_pylist()
    assert [(row["image"], row["error"] is None) for row in rows] == [
        ("caf\\xe9.png", True),
        ("2.png", True),
        ("pipe", False),
    ]
    assert "pipe is a pipe, a socket or a device" in rows[2]["error"]


@pytest.mark.parametrize("stranger", ["thesis.docx", "folder", "orphan.parquet"])
def test_restart_removes_only_a_job_s_parts(tmp_path: Path, stranger: str) -> None:
    job, output = Job("/", ("a.png",), "sha256:0", 1), tmp_path / "scores.parquet"
    directory = tmp_path / "scores.parquet.parts"
    if stranger == "orphan.parquet":
        directory.mkdir()
    else:
        open_parts(job, output)
    if stranger == "folder":
        (directory / stranger).mkdir()
    else:
        (directory / stranger).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"removes only the parts of a job, and this folder holds '{stranger}'"):
        open_parts(job, output, restart=True)
    assert (directory / stranger).exists()


def test_restart_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    directory, _ = open_parts(Job("/", ("a.png",), "sha256:0", 1), output)
    (directory / "000000.parquet").write_bytes(b"")
    (directory / ".draft-01234567.000001.parquet").write_bytes(b"")
    _, left = open_parts(Job("/", ("b.png",), "sha256:0", 1), output, restart=True)
    assert left == [0] and not (directory / "000000.parquet").exists()


def test_answers_are_kept_and_counted_by_level(
    tiny_bundle: Path, calibrated_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    taxonomy = load(calibrated_bundle, device="cpu").taxonomy
    bundle = promising(calibrated_bundle, tmp_path / "promising", sure_above(taxonomy, 0.5, groups=3))
    model, output = load(bundle, device="cpu"), tmp_path / "scores.parquet"
    names = tuple(name for name in find_images(pictures).images if name.endswith(".png"))
    job = Job(str(pictures), names, model.bundle.version, 1, precision=0.8)
    directory, _ = open_parts(job, output)
    write_part(score_part(job, 0, model), directory, 0)
    join_parts(job, directory, output)
    readable = [row for row in parquet.read_table(output).to_pylist() if row["error"] is None]
    expected = [model.predict(pictures / row["image"], precision=0.8).answer for row in readable]
    assert [row["answer"] for row in readable] == [None if one is None else one.model_dump() for one in expected]
    levels = [one.level for one in expected if one is not None]
    counts = {"none" if level == 0 else f"level_{level}": levels.count(level) for level in sorted(set(levels))}
    assert answered(output) == counts and len(levels) == len(readable) > 0
    assert verify(output, pictures / readable[0]["image"], bundle, device="cpu").same
    score_all(load(tiny_bundle, device="cpu"), pictures, tmp_path / "plain.parquet")
    assert answered(tmp_path / "plain.parquet") is None
