"""`protoserve score` as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from protoserve.cli.root import main; main()", "score")


def score(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    """The JSON document of a run that succeeds."""
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
