"""The number of prototypes: which one is picked, and a whole run that finds it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from protoserve.cli.root import build_app
from protoserve.errors import InputError
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from training.config import parse_config
from training.stages.counting import pick

# ---- which number is picked ------------------------------------------------------------------------------------------

ROUNDS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40).map(lambda right: right / 40)), min_size=1)


@given(ROUNDS, st.integers(0, 8).map(lambda points: points / 40))
def test_no_smaller_number_is_within_the_tolerance_and_none_as_small_is_better(
    rounds: list[tuple[int, float]], tolerance: float
) -> None:
    number, accuracy = rounds[pick(rounds, tolerance)]
    within = [done for done in rounds if round(40 * (max(a for _, a in rounds) - done[1])) <= round(40 * tolerance)]
    assert (number, accuracy) in within
    assert all(other > number or (other == number and found <= accuracy) for other, found in within)


def test_half_a_point_below_the_best_is_still_within() -> None:
    assert pick([(900, 0.845), (400, 0.85), (200, 0.845), (100, 0.8449)], 0.005) == 2


# ---- the configuration -----------------------------------------------------------------------------------------------


def test_requiring_more_own_patches_than_are_searched_is_refused() -> None:
    with pytest.raises(InputError, match="at_least is 7 of 6 nearest patches; lower at_least"):
        parse_config({"name": "a", "prune": {"at_least": 7}}, "c.yaml")


@pytest.mark.parametrize("given", ["many", "0", "-3", "2.5"])
def test_an_invalid_number_of_prototypes_is_named(given: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: a\n")
    arguments = ["train", str(config), "--data", str(tmp_path), "--run", str(tmp_path / "run"), f"--prototypes={given}"]
    ended = CliRunner().invoke(build_app(), arguments)
    assert ended.exit_code == 2
    assert f"--prototypes {given}: give 'auto' or how many per child" in " ".join(ended.output.split())


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_number_of_prototypes_that_the_rule_picks(counted_run: Path) -> None:
    counts = json.loads((counted_run / "counts.json").read_text())
    rounds, picked = counts["rounds"], counts["rounds"][counts["picked"]]
    numbers = [row["prototypes"] for row in rounds]
    network, description, sources = load_network(counted_run / "model.pt")
    assert isinstance(network, PrototypeNetwork) and sources is not None
    children = len(set(description.prototype_child))
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[0] == 4 * children
    assert numbers[-1] == children  # down to one per child
    best = max(row["selection_leaf"] for row in rounds)
    within = [row for row in rounds if row["selection_leaf"] >= best - 0.005 - 1e-9]
    assert picked == within[-1]
    assert len(network.head.prototypes) == len(description.prototype_child) == len(sources) == picked["prototypes"]
    # The network that the run continues with, scored from its features, is that of the row.
    with (counted_run / "history.csv").open(newline="") as stream:
        (done,) = [row for row in csv.DictReader(stream) if row["stage"] == "count"]
    assert float(done["selection_leaf"]) == pytest.approx(picked["selection_leaf"])
    assert float(done["selection_level_1"]) == pytest.approx(picked["selection_level_1"])
