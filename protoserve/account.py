"""The account that runs a command, for records of who changed something."""

from __future__ import annotations

import getpass
import os


def account_name() -> str:
    """Return the account's name, or `uid 10001` for one without a name, as containers often have."""
    try:
        return getpass.getuser()
    # Python 3.13 raises OSError, earlier versions KeyError or, on Windows, ImportError.
    except (OSError, KeyError, ImportError):
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
