"""The file of lines: nothing torn is ever read, and nothing that was acknowledged is ever lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protoserve.errors import InputError
from protoserve.feedback.lines import FullError, append_line, read_lines

ROOT = Path(__file__).resolve().parents[3]
# Appends lines of about 20,000 bytes and says after each that it is safe. Numbers start at the argument.
WRITER = """
import json, sys
from pathlib import Path
from protoserve.feedback.lines import append_line
number = int(sys.argv[2])
while True:
    append_line(Path(sys.argv[1]), json.dumps({"number": number, "padding": "x" * 20000}))
    print(number, flush=True)
    number += 1
"""


def numbers(file: Path) -> list[int]:
    return [value["number"] for _, value in read_lines(file).values]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    for number in range(3):
        append_line(file, json.dumps({"number": number, "é": "\\n"}, ensure_ascii=False))
    assert read_lines(file).values == tuple((n + 1, {"number": n, "é": "\\n"}) for n in range(3))
    assert file.read_bytes().count(b"\n") == 3


def test_a_line_cut_at_any_byte_is_never_read_and_the_next_append_heals_it(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    append_line(whole, '{"number": 0}')
    append_line(whole, '{"number": 1, "text": "a\\"}b"}')
    content = whole.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(first, len(content)):
        file = tmp_path / str(cut)
        file.write_bytes(content[:cut])
        assert numbers(file) == [0]
        assert read_lines(file).torn == (1 if cut > first else 0)
        append_line(file, '{"number": 2}')
        # All of the torn line but its line break is all of the record; then it becomes readable.
        assert numbers(file) == ([0, 1, 2] if cut == len(content) - 1 else [0, 2])
        assert file.read_bytes().startswith(content[:cut]), "nothing that was written is removed"


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_whatever_the_file_holds_an_append_is_read_back(folder: Path, parts: list[bytes]) -> None:
    file = folder / "any"
    file.write_bytes(b"\n".join(parts))
    append_line(file, '{"number": 7}')
    assert read_lines(file).values[-1][1] == {"number": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals")
def test_killed_writers_lose_nothing_that_they_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    acknowledged: list[int] = []
    seen = 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for attempt in range(6):
        command = [sys.executable, "-c", WRITER, str(file)]
        writers = [
            subprocess.Popen([*command, str(1000 * (2 * attempt + side))], stdout=subprocess.PIPE, env=environment)
            for side in range(2)
        ]
        while not file.exists() or file.stat().st_size <= seen:
            time.sleep(0.001)
        # A reader that runs beside the writers sees whole lines only.
        for _ in range(5):
            assert set(numbers(file)) <= set(range(100_000))
            time.sleep(0.002 * attempt)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            output, _ = writer.communicate()
            # The last word may be torn, too.
            acknowledged += [int(word) for word in output.decode().split("\n")[:-1]]
        seen = file.stat().st_size
    append_line(file, '{"number": -1}')
    found = numbers(file)
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))
    assert len(acknowledged) >= 6
    assert found[-1] == -1


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"

    def write(start: int) -> None:
        for number in range(start, start + 20):
            append_line(file, json.dumps({"number": number, "padding": "x" * 5000}))

    threads = [threading.Thread(target=write, args=(100 * side,)) for side in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(file)) == sorted(100 * side + number for side in range(4) for number in range(20))
    assert read_lines(file).torn == 0


def test_a_full_file_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    append_line(file, '{"number": 0}', limit=20)
    with pytest.raises(FullError, match=r"feedback\.jsonl: would exceed 20 bytes; move it away"):
        append_line(file, '{"number": 1}', limit=20)
    assert numbers(file) == [0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    file.symlink_to("/dev/full")
    with pytest.raises(FullError, match="No space left on device"):
        append_line(file, '{"number": 0}')


def test_a_line_with_a_line_break_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line break"):
        append_line(tmp_path / "feedback.jsonl", "{}\n{}")


def test_a_place_that_can_not_be_written_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't read it"):
        read_lines(tmp_path)
    with pytest.raises(InputError, match="can't write it"):
        append_line(tmp_path, "{}")
