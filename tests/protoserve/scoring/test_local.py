"""`protoserve score`: what the rows say, bad files, being killed and taken up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from protoserve.errors import InputError
from protoserve.inference.classifier import load
from protoserve.scoring.local import Job, find_images, open_parts

COMMAND = (sys.executable, "-c", "from protoserve.cli.root import main; main()", "score")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures in two folders, one that is none, one cut off, and a file that is not looked at."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(7):
        noise = np.random.default_rng(number).integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / ("more" if number % 2 else "") / f"{number}.png")
    (folder / "none.jpg").write_bytes(b"no picture")
    whole = (folder / "0.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no picture either")
    return folder


def score(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments), "--device", "cpu", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_rows_say_what_the_python_interface_says_and_bad_files_say_why(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.parquet"
    document = score(tiny_bundle, pictures, "-o", output, "--top-k", "2", "--part", "4")
    model = load(tiny_bundle, device="cpu")
    assert document == {"output": str(output), "rows": 9, "errors": 2, "model": model.bundle.manifest.version}
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
    assert score(tiny_bundle, table, "-o", output)["errors"] == 1
    rows = parquet.read_table(output).to_pylist()
    assert [row["image"] for row in rows] == names
    assert rows[1]["code"] == "unreadable_file"
    assert "no such image" in rows[1]["error"]


def test_a_killed_run_goes_on_where_it_was(tiny_bundle: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "many"
    pictures.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(pictures / "0.jpg")
    for number in range(1, 400):
        os.link(pictures / "0.jpg", pictures / f"{number}.jpg")
    output, parts = tmp_path / "scores.parquet", tmp_path / "scores.parquet.parts"
    arguments = (str(tiny_bundle), str(pictures), "-o", str(output), "--part", "20", "--device", "cpu")
    running = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(parts.glob("0*.parquet"))) < 2:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not output.exists()
    made = {file.name: file.stat().st_mtime_ns for file in parts.glob("0*.parquet")}
    assert 2 <= len(made) < 20
    refused = subprocess.run([*COMMAND, *arguments, "--top-k", "3"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "another job" in refused.stderr
    # What was made is not made again.
    root, images = find_images(pictures)
    version = load(tiny_bundle, device="cpu").bundle.manifest.version
    _, left = open_parts(Job(str(root), images, version, 1, 20), output)
    assert len(left) == 20 - len(made)
    assert {file.name: file.stat().st_mtime_ns for file in parts.glob("0*.parquet")} == made
    assert score(*arguments)["rows"] == 400
    assert not parts.exists()
    assert len(set(parquet.read_table(output).column("node").to_pylist())) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda place: place.mkdir(), "holds no pictures"),
        (lambda place: place.write_text("x"), "give a folder, a .csv or a .parquet file"),
        (lambda place: None, "give a folder, a .csv or a .parquet file"),
    ],
)
def test_a_source_without_pictures_is_refused(tmp_path: Path, make: Any, said: str) -> None:
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


def test_only_what_is_hidden_below_the_folder_is_left_out(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_pyarrow_the_message_names_the_extra(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from protoserve.cli.root import main; main()"
    words = ["score", str(tiny_bundle), str(pictures), "-o", str(tmp_path / "x.parquet")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'protoserve[score]'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif("PROTOSERVE_TEST_RAY" not in os.environ, reason="starts Ray for a minute or two: make test-faults")
def test_ray_gives_the_same_rows(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    score(bundle, pictures, "-o", here, "--part", "4")
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    score(bundle, pictures, "-o", there, "--part", "4", "--engine", "ray", "--actors", "1", env=environment)
    assert parquet.read_table(there).equals(parquet.read_table(here))
