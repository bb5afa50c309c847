"""The benchmark of web frameworks says which extra it needs."""

from __future__ import annotations

import subprocess
import sys


def test_without_fastapi_it_names_the_extra_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None; import benchmarks.service.web_framework"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    message = "error: benchmarks.service.web_framework needs the extra 'bench': pip install 'protoserve[bench]'"
    assert ended.stderr.strip() == message
