"""The bound of the folder in which runs share features."""

import os
import time

import pytest

from training.sharing import SharedCache


def filled(cache, name, size, hours_ago):
    folder = cache.used(name)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "features.npy").write_bytes(b"0" * size)
    then = time.time() - 3600 * hours_ago
    os.utime(folder, (then, then))
    return folder


@pytest.mark.parametrize(
    ("limit", "gone"),
    [(1000, set()), (600, set()), (599, {"oldest"}), (450, {"oldest", "old"}), (0, {"oldest", "old"})],
)
def test_what_was_unused_for_longest_goes_until_the_limit_holds(tmp_path, limit, gone):
    cache = SharedCache(tmp_path / "shared", limit)
    folders = {
        name: filled(cache, name, size, hours)
        for name, size, hours in (("old", 100, 5), ("oldest", 100, 9), ("own", 300, 20), ("busy", 100, 0.5))
    }
    removed = cache.trim({"own"})
    assert {folder.name for folder in removed} == gone
    assert {name for name, folder in folders.items() if not folder.exists()} == gone


def test_use_makes_a_folder_the_last_to_go(tmp_path):
    cache = SharedCache(tmp_path, 150)
    for name, hours in (("one", 3), ("two", 2)):
        filled(cache, name, 100, hours)
    cache.used("one")
    assert [folder.name for folder in cache.trim(())] == ["two"]
