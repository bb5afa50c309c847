"""The history of a run as TensorBoard events."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protoserve.errors import MissingExtraError


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
        self._writer = SummaryWriter(str(directory))
        for row in history:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one row of the history. Their tags start with the stage, except those of accuracies on
        the selection images, which form one curve over all stages."""
        for name, value in row.items():
            if name not in ("step", "stage", "epoch") and isinstance(value, int | float):
                tag = name if name.startswith("selection") else f"{row['stage']}/{name}"
                self._writer.add_scalar(tag, value, row["step"] + 1)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
