"""Environments for converters that need other versions of packages than ours.

Each lies in a folder of its own, is made when it is first needed, and stays. It takes from our environment what fits,
so that torch is not installed twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from protoserve.errors import InputError

# Written last, with the hash of what was installed.
_DONE: Final = "installed"
# Seconds, enough for 500 MB over a slow connection; conversion of a large network takes minutes.
_INSTALLING: Final = 3600
_CONVERTING: Final = 3600


def default_folder() -> Path:
    """Return the folder of the converters: protoserve/converters in the user's folder for caches."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "protoserve" / "converters"


def converter(name: str, package: str, folder: Path, report: Callable[[str], None]) -> Path:
    """Return the Python of the environment `name` below `folder`, with `package` in it; make it if it is not there.

    The versions are those of `NAME-constraints.txt` beside this module; an environment of others is made anew. Raises
    InputError if it can't be made.
    """
    constraints = files("export.targets") / f"{name}-constraints.txt"
    stated = hashlib.sha256((constraints.read_text() + package + sys.version).encode()).hexdigest()
    place = folder / name
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = place / _DONE
    if done.is_file() and done.read_text() == stated:
        return python
    # Only an environment may be removed, whole or half made: the folder is the user's choice.
    if place.is_dir() and any(place.iterdir()) and not (place / "pyvenv.cfg").is_file():
        raise InputError(f"{place}: holds something else than a converter; give another folder: --converters DIR")
    report(f"installing {package} into {place}, once")
    try:
        shutil.rmtree(place, ignore_errors=True)
        # Ours installs much faster than a new one is set up; some environments have none.
        own_pip = find_spec("pip") is not None
        venv.create(place, with_pip=not own_pip)
        names = {"base": str(place), "platbase": str(place)}
        own = Path(sysconfig.get_path("purelib", "venv", vars=names))
        # Behind its own packages, so that its own versions win.
        ours = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
        (own / "zz_beside.pth").write_text("\n".join(ours) + "\n")
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"{place}: can't make an environment ({error}); give another folder: --converters DIR"
        ) from error
    pip = [sys.executable, "-m", "pip", "--python", str(python)] if own_pip else [str(python), "-m", "pip"]
    command = [*pip, "install", "--quiet", "--constraint", str(constraints), package]
    _run(command, _INSTALLING, f"pip can't install {package} into {place}", "check that pip can reach its index")
    done.write_text(stated)
    return python


def convert(python: Path, script: str, arguments: list[str]) -> None:
    """Run a script of this folder in a converter's environment; raises InputError with its last line if it fails."""
    command = [str(python), str(files("export.targets") / script), *arguments]
    _run(command, _CONVERTING, f"{script} failed", "leave the target out, or report it with the network's backbone")


def _run(command: list[str], seconds: int, failure: str, cure: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{failure}: not done within {seconds} s; {cure}") from error
    except OSError as error:
        raise InputError(f"{failure}: {error.strerror}; {cure}") from error
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()] or ["no message"]
        raise InputError(f"{failure} ({lines[-1].strip()[:300]}); {cure}")
