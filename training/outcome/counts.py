"""The files of the search for the number of prototypes: `counts.json`, `counts.csv` and `counts.png`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protoserve.files import write_bytes, write_text
from training.outcome.charts import as_png, counts_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_counts(counts: dict[str, Any], directory: Path, name: str) -> None:
    """The facts of `count` as `counts.json`, `counts.csv` and `counts.png`."""
    write_text(directory / "counts.json", json.dumps(counts, indent=1) + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*counts["rounds"][0], "picked"])
    writer.writeheader()
    for number, row in enumerate(counts["rounds"]):
        writer.writerow({**row, "picked": int(number == counts["picked"])})
    write_text(directory / "counts.csv", buffer.getvalue())

    def draw() -> Figure:
        figure = counts_figure(counts)
        figure.suptitle(f"{name}: how many prototypes", fontsize=11)
        return figure

    write_bytes(directory / "counts.png", as_png(draw))
