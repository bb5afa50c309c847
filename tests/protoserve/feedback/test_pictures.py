"""Pictures by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protoserve.errors import InputError
from protoserve.feedback.lines import FullError
from protoserve.feedback.pictures import find_by_hash, keep_picture


def test_a_picture_is_kept_once_under_its_hash(tmp_path: Path, photograph: Path) -> None:
    data = photograph.read_bytes()
    names = [keep_picture(tmp_path, data, limit=len(data)) for _ in range(2)]
    assert names == [hashlib.sha256(data).hexdigest()] * 2
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(f"{names[0]}.jpg", data)]
    with pytest.raises(FullError, match="would exceed"):
        keep_picture(tmp_path, data + b"\0", limit=len(data))
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="can't write it"):
        keep_picture(tmp_path / "missing", data)


def test_pictures_are_found_whatever_their_names(tmp_path: Path, photograph: Path) -> None:
    data = photograph.read_bytes()
    for name, content in {"b/c/z.jpg": data, "b/y.jpg": data, "x.jpg": data + b"\0", "note.txt": data}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    wanted = hashlib.sha256(data).hexdigest()
    assert find_by_hash(tmp_path, {wanted, "0" * 64}) == {wanted: tmp_path / "b/c/z.jpg"}
