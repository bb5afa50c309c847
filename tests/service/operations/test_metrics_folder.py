"""The folder of a server's metrics: one for each, with disk space allocated, removed at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from protoserve.errors import InputError
from service.operations.metrics_folder import claim_folder

ROOT = Path(__file__).resolve().parents[3]
CLAIM = (
    "import sys; from pathlib import Path; from service.operations.metrics_folder import claim_folder; "
    "print(claim_folder(Path(sys.argv[1])), flush=True); "
)


def start(parent: Path, then: str = "input()") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM + then, str(parent)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_every_server_has_a_folder_of_its_own_and_removes_it(tmp_path: Path) -> None:
    parent = tmp_path / "missing" / "metrics"
    with start(parent) as first, start(parent) as second:
        assert first.stdout is not None and second.stdout is not None
        folders = {first.stdout.readline().strip(), second.stdout.readline().strip()}
        assert {str(folder) for folder in parent.iterdir()} == folders
        assert len(folders) == 2
        first.communicate("\n")
        second.communicate("\n")
    assert list(parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="uses locks of POSIX systems")
def test_the_folder_of_a_killed_server_is_removed_by_the_next_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "protoserve-metrics-of-version-0.1").mkdir()
    with start(tmp_path) as living, start(tmp_path) as killed:
        assert living.stdout is not None and killed.stdout is not None
        kept, left = Path(living.stdout.readline().strip()), Path(killed.stdout.readline().strip())
        killed.kill()
        killed.wait()
        assert kept.is_dir() and left.is_dir()
        with start(tmp_path, "pass") as next_one:
            next_one.communicate()
        assert kept.is_dir() and not left.exists()
        assert (tmp_path / "protoserve-metrics-of-version-0.1").is_dir()
        living.communicate("\n")


def test_a_parent_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        claim_folder(tmp_path / "file" / "metrics")


def test_disk_space_is_allocated_before_any_metric_is_declared(tmp_path: Path) -> None:
    use = (
        "from service.operations.metrics_folder import use_folder; use_folder(); "
        "before = sorted(Path(sys.argv[1]).rglob('*.db')); "
        "from service.operations.metrics import IN_FLIGHT, REQUESTS, STAGE_SECONDS; "
        "IN_FLIGHT.inc(); REQUESTS.labels('/', 'GET', 200).inc(); STAGE_SECONDS.labels('read').observe(1); "
        # `st_blocks` counts units of 512 bytes that the disk really holds.
        "print(before == sorted(Path(sys.argv[1]).rglob('*.db')), len(before), "
        "all(file.stat().st_blocks * 512 >= file.stat().st_size >= 1 << 20 for file in before))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", CLAIM + use, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "True 4 True"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system can't allocate disk space")
def test_too_little_disk_space_is_said_in_one_line(tmp_path: Path) -> None:
    use = "import resource; from service.operations.metrics_folder import use_folder; import signal; "
    # A file may not grow beyond 100 kB, as on a disk with so much space left.
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100000,) * 2); "
    code = (
        CLAIM + use + limit + "\nfrom protoserve.errors import InputError\n"
        "try: use_folder()\nexcept InputError as error: print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "no space for a worker's metrics" in ended.stdout and "4 MiB" in ended.stdout


def test_too_little_room_for_all_workers_is_said_before_any_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MiB free, and the metrics of 1000000000 worker\(s\) need 4000000000"):
        claim_folder(tmp_path, workers=10**9)
    assert list(tmp_path.iterdir()) == []
