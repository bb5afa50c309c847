"""Progress bars go to standard error."""

from __future__ import annotations

import pytest

from protoserve.cli.progress import progress


def test_progress_counts_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("counting", 10, done=4) as advance:
        advance(5)
    output = capsys.readouterr()
    assert output.out == ""
    assert "counting" in output.err and "9/10" in output.err
