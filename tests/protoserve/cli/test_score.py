"""`protoserve score`: its summary, a killed run that resumes, and a missing library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow import parquet

from protoserve.inference.classifier import load
from protoserve.scoring.local import Job, find_images, open_parts
from tests.protoserve.cli.command_line import CommandLine
from tests.protoserve.scoring.command import COMMAND, score


def test_the_summary_counts_rows_and_errors(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    output = tmp_path / "scores.parquet"
    arguments = ("score", tiny_bundle, pictures, "-o", output, "--device", "cpu")
    code, out, _ = protoserve_command(*arguments)
    assert code == 0 and out == (
        f"{output}   9 pictures, 2 of them could not be read; passed over 1 file: 1 without the suffix of a picture\n"
    )
    code, out, _ = protoserve_command(*arguments, "--json")
    version = load(tiny_bundle, device="cpu").bundle.version
    assert code == 0 and json.loads(out) == {
        "output": str(output),
        "rows": 9,
        "errors": 2,
        "passed_over": {"other_suffix": 1},
        "model": version,
        # The bundle promises nothing.
        "precision": None,
        "answered": None,
    }


def test_a_folder_as_output_is_refused(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    code, out, err = protoserve_command("score", tiny_bundle, pictures, "-o", tmp_path)
    assert (code, out) == (2, "") and f"{tmp_path} is a folder; give the Parquet file to write" in err


def test_a_killed_run_resumes(tiny_bundle: Path, tmp_path: Path) -> None:
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
    root, images, _ = find_images(pictures)
    version = load(tiny_bundle, device="cpu").bundle.version
    _, left = open_parts(Job(str(root), images, version, 1, 20), output)
    assert len(left) == 20 - len(made)
    assert {file.name: file.stat().st_mtime_ns for file in parts.glob("0*.parquet")} == made
    assert score(*arguments)["rows"] == 400
    assert not parts.exists()
    assert len(set(parquet.read_table(output).column("node").to_pylist())) == 1


def test_without_pyarrow_the_message_names_the_extra(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from protoserve.cli.root import main; main()"
    words = ["score", str(tiny_bundle), str(pictures), "-o", str(tmp_path / "x.parquet")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'protoserve[score]'" in done.stderr
