"""The command line as a function."""

from __future__ import annotations

import pytest

from protoserve.cli.root import main
from tests.protoserve.cli.command_line import CommandLine, Ended


@pytest.fixture
def protoserve_command(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line; each call gives its exit code, standard output and standard error."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Ended(stop.value.code, output.out, output.err)

    return run
