"""Turns off the usage reports of libraries: nothing leaves the machine unasked.

On import, onnxruntime writes a device id and a database below the home directory and asks for its makers' host;
BentoML and Ray report each start. They read these variables when they are imported, so `protoserve` sets them first.
"""

from __future__ import annotations

import os
from typing import Final

NO_REPORTS: Final = {
    "ORT_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def disable_telemetry() -> None:
    """Turn off the reports for this process and those that it starts; a variable that the user set stays as it is."""
    for name, value in NO_REPORTS.items():
        os.environ.setdefault(name, value)
