"""The command line as a function: types of the fixture `protoserve_command`."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine(Protocol):
    """Runs `protoserve` with arguments in this process."""

    def __call__(self, *arguments: object) -> Ended: ...
