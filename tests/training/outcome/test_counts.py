"""The files of the search for the number of prototypes agree with each other and with the metrics."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from rich.console import Console

from protoserve.run.folder import open_run
from protoserve.run.records import Counts, CountsRound
from training.outcome.counts import write_counts

ROUNDS = [
    CountsRound(round=0, rule="", prototypes=40, selection_leaf=0.8, selection_level_1=0.9),
    CountsRound(round=1, rule="contribution", prototypes=20, selection_leaf=0.75, selection_level_1=0.95),
]


def test_the_table_is_written_as_json_csv_and_a_figure(tmp_path: Path) -> None:
    write_counts(Counts(rounds=ROUNDS, picked=1, tolerance=0.1), tmp_path, "$_{2$", Console(quiet=True))
    assert json.loads((tmp_path / "counts.json").read_text()) == {
        "rounds": [
            {"round": 0, "rule": "", "prototypes": 40, "selection_leaf": 0.8, "selection_level_1": 0.9},
            {"round": 1, "rule": "contribution", "prototypes": 20, "selection_leaf": 0.75, "selection_level_1": 0.95},
        ],
        "picked": 1,
        "tolerance": 0.1,
    }
    assert (tmp_path / "counts.csv").read_text().splitlines() == [
        "round,rule,prototypes,selection_leaf,selection_level_1,picked",
        "0,,40,0.8,0.9,0",
        "1,contribution,20,0.75,0.95,1",
    ]
    assert (tmp_path / "counts.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_writes_the_table_of_its_metrics(counted_run: Path) -> None:
    counts = open_run(counted_run).metrics().counts
    assert counts is not None
    assert Counts.model_validate_json((counted_run / "counts.json").read_bytes()) == counts
    with (counted_run / "counts.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["prototypes"]) for row in rows] == [row.prototypes for row in counts.rounds]
    assert [row["picked"] for row in rows].index("1") == counts.picked
    assert (counted_run / "counts.png").read_bytes().startswith(b"\x89PNG")
