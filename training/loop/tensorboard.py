"""The history of a run as TensorBoard events."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from protoserve.errors import MissingExtraError

_LOG = logging.getLogger(__name__)


class Board:
    """Writes event files to `directory`. A resumed run replaces them by new ones with its whole `history`.

    Raises MissingExtraError if tensorboard is not installed.
    """

    def __init__(self, directory: Path, history: list[dict[str, Any]]) -> None:
        try:
            with warnings.catch_warnings():
                # tensorboard itself uses deprecated parts of its dependencies.
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        for stale in directory.glob("events.out.tfevents.*"):
            stale.unlink()
        self._failed = False
        self._writer = SummaryWriter(str(directory))
        for row in history:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one row of the history. Their tags start with the stage, except those of accuracies on
        the selection images, which form one curve over all stages."""
        for name, value in row.items():
            if name not in ("step", "stage", "epoch") and isinstance(value, int | float):
                tag = name if name.startswith("selection") else f"{row['stage']}/{name}"
                self._write(partial(self._writer.add_scalar, tag, value, row["step"] + 1))
        self._write(self._writer.flush)

    def close(self) -> None:
        """Flush and close the event file."""
        self._write(self._writer.close)

    def _write(self, write: Callable[[], object]) -> None:
        """Write to the event file; after a failure, such as a full disk, only warn, because the run goes on."""
        if self._failed:
            return
        try:
            write()
        except OSError as error:
            self._failed = True
            _LOG.warning("can't write the event file for TensorBoard any more (%s); training goes on", error)
