"""A decoding process: the same pixels as elsewhere, within its limits, and nothing of the web framework in it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from tests import bombs

ROOT = Path(__file__).resolve().parents[3]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set on Linux")
START = """
import sys
from pathlib import Path
from protoserve.images.decoding import Limits
from protoserve.images.geometry import InputRule
from service.scheduling.isolation import fit_within

rule = InputRule(height=32, width=48, resize="crop")
data, formats = Path(sys.argv[1]).read_bytes(), ("JPEG", "PNG", "BMP")
try:
    fitted = fit_within(data, rule, Limits(), formats, False, MEMORY, SECONDS)
except Exception as error:
    sys.exit(print(type(error).__name__))
"""


def run(tmp_path: Path, data: bytes, end: str, *, memory: int, seconds: float) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "picture"
    file.write_bytes(data)
    code = START.replace("MEMORY", str(memory)).replace("SECONDS", str(seconds)) + end
    return subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_the_result_is_that_of_a_thread(tmp_path: Path) -> None:
    data = bombs.portrait(120, 80)
    end = "print(fitted.array.tobytes().hex(), fitted.geometry)"
    found = run(tmp_path, data, end, memory=50_000_000, seconds=5)
    expected = fit(decode(data), InputRule(height=32, width=48, resize="crop"))
    assert found.stdout == f"{expected.array.tobytes().hex()} {expected.geometry}\n", found.stderr


@LINUX
def test_memory_beyond_the_estimate_is_refused_and_not_taken(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8000, 8000), dtype=np.uint8)).convert("RGB").save(stream, "PNG", compress_level=1)
    found = run(tmp_path, stream.getvalue(), "", memory=1_000_000, seconds=20)
    assert found.stdout == "OutOfMemoryError\n"


@LINUX
def test_a_process_ends_where_its_time_is_up(tmp_path: Path) -> None:
    # Some ten seconds of Python, without a parent that would kill it.
    found = run(tmp_path, bombs.run_lengths(6000, 6000), "", memory=200_000_000, seconds=0.5)
    assert found.returncode == -24, found.stderr


@LINUX
def test_it_lets_others_go_first_and_ends_first_when_memory_runs_out(tmp_path: Path) -> None:
    end = "import os; print(os.getpriority(os.PRIO_PROCESS, 0), Path('/proc/self/oom_score_adj').read_text().strip())"
    assert run(tmp_path, bombs.portrait(30, 20), end, memory=50_000_000, seconds=5).stdout == "10 1000\n"


def test_it_imports_neither_the_web_framework_nor_the_model_s_runtime(tmp_path: Path) -> None:
    end = "print(sorted({'bentoml', 'starlette', 'onnxruntime', 'anyio', 'prometheus_client'} & set(sys.modules)))"
    assert run(tmp_path, bombs.portrait(30, 20), end, memory=50_000_000, seconds=5).stdout == "[]\n"


def test_what_libraries_print_can_not_fill_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    # libtiff reports damage on the standard error of the process, past Python.
    end = "import os; print(os.write(2, bytes(1_000_000)))"
    found = run(tmp_path, bombs.portrait(30, 20), end, memory=50_000_000, seconds=5)
    assert (found.stdout, found.stderr) == ("1000000\n", "")
