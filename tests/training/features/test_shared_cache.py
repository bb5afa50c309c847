"""The bound of the folder in which runs share features."""

import os
import shutil
import time
from pathlib import Path

import pytest

from training.features.shared_cache import SharedCache


def filled(cache: SharedCache, name: str, size: int, hours_ago: float) -> Path:
    folder = cache.use(name)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "features.npy").write_bytes(b"0" * size)
    then = time.time() - 3600 * hours_ago
    for entry in (*folder.rglob("*"), folder):
        os.utime(entry, (then, then))
    return folder


@pytest.mark.parametrize(
    ("limit", "gone"),
    [(1000, set()), (600, set()), (599, {"oldest"}), (450, {"oldest", "old"}), (0, {"oldest", "old"})],
)
def test_the_least_recently_used_are_evicted_until_the_limit_holds(tmp_path: Path, limit: int, gone: set[str]) -> None:
    cache = SharedCache(tmp_path / "shared", limit)
    folders = {
        name: filled(cache, name, size, hours)
        for name, size, hours in (("old", 100, 5), ("oldest", 100, 9), ("own", 300, 20), ("busy", 100, 0.5))
    }
    evicted = cache.evict({"own"})
    assert {folder.name for folder in evicted} == gone
    assert {name for name, folder in folders.items() if not folder.exists()} == gone


def test_the_folder_used_last_is_evicted_last(tmp_path: Path) -> None:
    cache = SharedCache(tmp_path, 150)
    for name, hours in (("one", 3), ("two", 2)):
        filled(cache, name, 100, hours)
    cache.use("one")
    assert [folder.name for folder in cache.evict(())] == ["two"]


def test_a_folder_still_being_written_is_not_evicted(tmp_path: Path) -> None:
    cache = SharedCache(tmp_path, 0)
    folder = filled(cache, "growing", 100, 5)
    with (folder / "deeper" / "features.npy").open("ab") as draft:
        draft.write(b"0")
    assert cache.evict(()) == []
    assert folder.exists()


def test_a_folder_that_cannot_be_removed_is_not_reported_as_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = SharedCache(tmp_path, 150)
    for name, hours in (("stuck", 9), ("old", 5)):
        filled(cache, name, 100, hours)
    remove = shutil.rmtree

    def some(folder: Path, **options: bool) -> None:
        if folder.name != "stuck":
            remove(folder, ignore_errors=options["ignore_errors"])

    monkeypatch.setattr("training.features.shared_cache.shutil.rmtree", some)
    assert [folder.name for folder in cache.evict(())] == ["old"]
