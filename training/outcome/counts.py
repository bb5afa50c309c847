"""The results of the search for the number of prototypes: `counts.json`, `counts.csv` and `counts.png`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from protoserve.files import write_text
from protoserve.run.records import Counts
from training.outcome.charts import counts_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_counts(counts: Counts, directory: Path, name: str, console: Console) -> None:
    """Write the rounds of the search into a run's folder; `name` is the run's name, for the title of the figure."""
    content = counts.model_dump()
    write_text(directory / "counts.json", json.dumps(content, indent=1) + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*content["rounds"][0], "picked"])
    writer.writeheader()
    for index, row in enumerate(content["rounds"]):
        writer.writerow({**row, "picked": int(index == counts.picked)})
    write_text(directory / "counts.csv", buffer.getvalue())

    def draw() -> Figure:
        figure = counts_figure(counts)
        figure.suptitle(f"{name}: how many prototypes", fontsize=11)
        return figure

    write_figure(directory / "counts.png", draw, console)
