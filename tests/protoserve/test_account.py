"""Who changed something is known also where an account has no name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from protoserve.account import account_name


def test_it_is_the_name_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert account_name() == "ann"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can take a number without a name"
)
def test_a_number_without_a_name_is_told_as_it_is() -> None:
    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    unnamed = {name: value for name, value in os.environ.items() if name not in names}
    # It is imported first, because that user may not be able to read it.
    code = "import protoserve.account as account, os; os.setuid(54321); print(account.account_name())"
    ended = subprocess.run([sys.executable, "-c", code], env=unnamed, capture_output=True, text=True)
    assert ended.stdout == "uid 54321\n", ended.stderr
