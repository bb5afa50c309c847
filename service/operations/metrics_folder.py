"""The folder where the workers of one server keep their metrics (`prometheus_client` reads all of them there).

Every server has a folder of its own, so that two servers never see each other's counts, and no server empties the
folder of another. Metrics look for it when they are declared. So this module declares none, and `use_folder` must run
before `service.operations.metrics` is imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from protoserve.errors import InputError
from protoserve.files import make_folder

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
# How the supervisor names the folder to its workers. BentoML sets prometheus_client's own variable to its own folder.
_GIVEN: Final = "_PROTOSERVE_METRICS_FOLDER"
# No other program names its folders so; they may not be locked.
_PREFIX: Final = "protoserve-server-metrics-"
# The kinds of files that prometheus_client keeps for the metrics of `service.operations.metrics`.
_KINDS: Final = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
# Large enough for all labels, so that no file grows later.
_FILE_BYTES: Final = 1 << 20
_WORKER_MIB: Final = len(_KINDS) * _FILE_BYTES >> 20
# Keep the locks of this process's folders open until it ends.
_LOCKS: Final[list[int]] = []


def claim_folder(parent: Path | None, workers: int = 1) -> Path:
    """Make the folder of a server in `parent`, and name it to the workers that this process starts.

    `parent` is made where it is missing; None means the folder for temporary files. The folder is removed when this
    process ends. Folders of killed servers are removed now. Raises InputError where `parent` can't be written, or has
    too little room for `workers`.
    """
    if parent is not None:
        make_folder(parent)
    try:
        directory = parent or Path(tempfile.gettempdir())
        _remove_abandoned(directory)
        free, needed = shutil.disk_usage(directory).free >> 20, workers * _WORKER_MIB
        if free < needed:
            raise InputError(
                f"{directory}: has {free} MiB free, and the metrics of {workers} worker(s) need {needed}; make room "
                "there, or set PROTOSERVE_METRICS_DIRECTORY to another folder"
            )
        # Other servers don't touch it before it has its name, which is after it is locked.
        draft = Path(tempfile.mkdtemp(prefix=f".new-{_PREFIX}", dir=directory))
        _lock(draft)
        folder = draft.rename(directory / draft.name.removeprefix(".new-"))
    except OSError as error:
        raise InputError(
            f"{parent or 'the folder for temporary files'}: can't keep metrics there ({error.strerror or error}); make "
            "room, or set PROTOSERVE_METRICS_DIRECTORY to another folder"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_GIVEN] = str(folder)
    return folder


def use_folder() -> None:
    """Make this worker keep its metrics in the folder that its supervisor has claimed, and allocate the disk space.

    On a full disk, the kernel kills a process that writes to a mapped page without space. So the space is allocated
    first. Raises InputError where there is too little.
    """
    if _GIVEN not in os.environ:
        # Started without our supervisor: BentoML's folder.
        return
    folder = Path(os.environ[_GIVEN])
    os.environ[DIRECTORY] = str(folder)
    for kind in _KINDS:
        file = folder / f"{kind}_{os.getpid()}.db"
        try:
            with file.open("ab") as stream:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, _FILE_BYTES)
        except OSError as error:
            raise InputError(
                f"{folder}: no space for a worker's metrics ({error.strerror}); free {_WORKER_MIB} MiB per worker "
                "there, or set PROTOSERVE_METRICS_DIRECTORY to another folder"
            ) from error


def _lock(folder: Path) -> bool:
    """Lock a folder until this process ends. Returns False where another process has locked it."""
    if sys.platform == "win32":
        return False
    import fcntl

    # A lock of the folder itself also keeps systemd-tmpfiles from cleaning it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _LOCKS.append(descriptor)
    return True


def _remove_abandoned(directory: Path) -> None:
    for folder in directory.glob(f"{_PREFIX}*"):
        try:
            abandoned = _lock(folder)
        except OSError:
            # Another user's, or just removed.
            continue
        if abandoned:
            os.close(_LOCKS.pop())
            shutil.rmtree(folder, ignore_errors=True)
