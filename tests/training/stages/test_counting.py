"""How many prototypes: each rule by hand or by trying everything, and a whole run that counts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from protoserve.cli.root import build_app
from protoserve.errors import InputError
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.model_file import load_network
from protoserve.taxonomy import Taxonomy
from training.config import parse_config
from training.loop.plan import plan
from training.prototypes.thinning import (
    mean_similarities,
    near_duplicates,
    replacements,
    smaller_head,
    strongest,
    with_reweighted_replacements,
)
from training.stages.counting import pick

TAXONOMY = Taxonomy.from_paths(["A/B/x", "A/B/y", "A/z", "Q"])


def make_head(kind="hierarchical", per_child=3, dimensions=4):
    torch.manual_seed(0)
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, kind, per_child), dimensions, kind=kind)
    with torch.no_grad():
        head.weight.normal_()
    return head.eval()


# ---- which number is taken -------------------------------------------------------------------------------------------

ROUNDS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40).map(lambda right: right / 40)), min_size=1)


@given(ROUNDS, st.integers(0, 8).map(lambda points: points / 40))
def test_no_smaller_number_is_within_the_tolerance_and_none_as_small_is_better(rounds, tolerance) -> None:
    number, accuracy = rounds[pick(rounds, tolerance)]
    within = [done for done in rounds if round(40 * (max(a for _, a in rounds) - done[1])) <= round(40 * tolerance)]
    assert (number, accuracy) in within
    assert all(other > number or (other == number and found <= accuracy) for other, found in within)


def test_half_a_point_below_the_best_is_still_within() -> None:
    assert pick([(900, 0.845), (400, 0.85), (200, 0.845), (100, 0.8449)], 0.005) == 2


# ---- the rules -------------------------------------------------------------------------------------------------------


def test_prototypes_of_one_cell_and_close_ones_of_one_child_are_duplicates() -> None:
    head = make_head()
    assert head.grouping.prototype_child[:6].tolist() == [0, 0, 0, 1, 1, 1]  # two children of the root, three each
    with torch.no_grad():
        head.prototypes.copy_(torch.rand(head.prototypes.shape) + torch.arange(len(head.prototypes))[:, None])
        head.prototypes[1] = head.prototypes[0] + 0.01  # close to 0
        head.prototypes[3] = head.prototypes[0]  # equal, but another child's
        head.prototypes[5] = head.prototypes[4] + 5.0  # far, but cut from the same cell
    source = np.stack([np.arange(len(head.prototypes)), np.zeros(len(head.prototypes), dtype=np.int64)], axis=1)
    source[5] = source[4]
    strength = np.ones(len(head.prototypes))
    strength[1] = strength[4] = 2.0
    found = near_duplicates(head, source, strength, within=0.01)
    expected = np.arange(len(head.prototypes))
    expected[0], expected[5] = 1, 4  # the stronger of each pair stands for both
    assert found.tolist() == expected.tolist()


def test_no_chain_of_neighbours_joins_what_lies_apart() -> None:
    head = make_head(dimensions=1)
    with torch.no_grad():
        head.prototypes[:, 0] = torch.arange(len(head.prototypes)) * 100.0
        # Neighbours 1 apart, the ends 2; among siblings the median distance squared is far above.
        head.prototypes[:3, 0] = torch.tensor([0.0, 1.0, 2.0])
    source = np.stack([np.arange(len(head.prototypes))] * 2, axis=1)
    limit = np.median([(a - b) ** 2 for a in (0.0, 1.0, 2.0) for b in (300.0, 400.0, 500.0)])
    strength = np.arange(len(head.prototypes), 0, -1.0)
    found = near_duplicates(head, source, strength, within=1.5 / limit)
    assert found[:3].tolist() == [0, 0, 2]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_replacements_are_the_nearest_of_the_same_child(kind: str) -> None:
    head = make_head(kind, per_child=4)
    child, vectors = head.grouping.prototype_child.tolist(), head.prototypes.detach().double()
    keep = np.array([number for number in range(len(child)) if number % 4 in (1, 2)])
    found = replacements(head, keep)
    for number in range(len(child)):
        possible = [other for other in keep if child[other] == child[number]]
        expected = min(possible, key=lambda other: float((vectors[other] - vectors[number]).square().sum()))
        assert found[number] == (number if number in keep else expected)


def test_the_strongest_stay_and_the_strongest_of_every_child() -> None:
    strength = np.array([0.1, 0.2, 9.0, 8.0, 7.0, 6.0])
    child = np.array([0, 0, 1, 1, 1, 2])
    assert strongest(strength, child, 4).tolist() == [1, 2, 3, 5]
    assert strongest(strength, child, 5).tolist() == [1, 2, 3, 4, 5]
    assert strongest(strength, child, 0).tolist() == [1, 2, 5]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_means_run_over_the_images_below_the_parent(kind: str) -> None:
    head = make_head(kind)
    leaves = np.arange(21) % len(TAXONOMY.leaves)
    distance = torch.rand(21, len(head.prototypes))
    mean = mean_similarities(head, distance, leaves)
    for number, child in enumerate(head.grouping.prototype_child.tolist()):
        parent = TAXONOMY.names[child].rpartition("/")[0] if kind == "hierarchical" else ""
        below = [TAXONOMY.names[TAXONOMY.leaves[leaf]].startswith(f"{parent}/" if parent else "") for leaf in leaves]
        values = head.similarity.of_distance(distance[torch.tensor(below), number].double()).numpy()
        assert mean[number] == pytest.approx(values.mean(), rel=1e-6)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_duplicates_leave_their_weights_without_changing_an_answer(kind: str) -> None:
    head = make_head(kind, per_child=2)
    with torch.no_grad():
        head.prototypes[1::2] = head.prototypes[::2]
    replacement = np.arange(len(head.prototypes)) // 2 * 2
    smaller = smaller_head(
        with_reweighted_replacements(head, replacement, np.ones(len(replacement))), np.unique(replacement)
    )
    latent = torch.rand(5, 4, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(smaller(latent).group_logits, head(latent).group_logits, rtol=1e-5, atol=1e-5)


def test_inheritance_keeps_every_mean_logit() -> None:
    head = make_head(per_child=4)
    # All images are below both groups' parents only for the root; so its own logits are looked at.
    distance = torch.rand(400, len(head.prototypes))
    leaves = np.arange(400) % len(TAXONOMY.leaves)
    mean = mean_similarities(head, distance, leaves)
    keep = np.array([number for number in range(len(head.prototypes)) if number % 4 == 3])
    smaller = smaller_head(with_reweighted_replacements(head, replacements(head, keep), mean), keep)
    with torch.no_grad():
        before = head.classify(distance, distance.long()).group_logits[:, 0, :2].mean(0)
        after = smaller.classify(distance[:, torch.from_numpy(keep)], distance[:, keep].long()).group_logits[:, 0, :2]
    torch.testing.assert_close(after.mean(0), before, rtol=1e-4, atol=1e-4)


# ---- the configuration -----------------------------------------------------------------------------------------------


def stages_after_projection(content):
    stages = [step.stage for step in plan(parse_config({"name": "a", **content}, "c"), linear=False)]
    return stages[len(stages) - stages[::-1].index("project") :]


def test_counting_takes_the_place_of_pruning_before_the_patches_are_looked_for() -> None:
    one = {"last_layers": {"epochs": 1}}
    end = ["analyse", "calibrate", "novelty", "finish"]
    assert stages_after_projection(one) == ["last layers", *end]
    assert stages_after_projection({**one, "prune": {"enabled": True}}) == ["last layers", "prune", "last layers", *end]
    both = {**one, "prune": {"enabled": True}, "prototypes": {"auto": True}}
    assert stages_after_projection(both) == ["last layers", "count", *end]


def test_more_own_patches_than_are_looked_at_are_refused() -> None:
    with pytest.raises(InputError, match="at_least is 7 of 6 nearest patches; lower at_least"):
        parse_config({"name": "a", "prune": {"at_least": 7}}, "c.yaml")


@pytest.mark.parametrize("given", ["many", "0", "-3", "2.5"])
def test_a_number_of_prototypes_that_is_none_is_named(given: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: a\n")
    arguments = ["train", str(config), "--data", str(tmp_path), "--run", str(tmp_path / "run"), f"--prototypes={given}"]
    ended = CliRunner().invoke(build_app(), arguments)
    assert ended.exit_code == 2
    assert f"--prototypes {given}: give 'auto' or how many per child" in " ".join(ended.output.split())


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_takes_the_number_that_the_rule_says(counted_run: Path) -> None:
    counts = json.loads((counted_run / "counts.json").read_text())
    rounds, picked = counts["rounds"], counts["rounds"][counts["picked"]]
    numbers = [row["prototypes"] for row in rounds]
    network, description, sources = load_network(counted_run / "model.pt")
    children = len(set(description.prototype_child))
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[0] == 4 * children
    assert numbers[-1] == children  # down to one per child
    best = max(row["selection_leaf"] for row in rounds)
    within = [row for row in rounds if row["selection_leaf"] >= best - 0.005 - 1e-9]
    assert picked == within[-1]
    assert len(network.head.prototypes) == len(description.prototype_child) == len(sources) == picked["prototypes"]
    # The network that goes on, run from its features, is that of the row.
    with (counted_run / "history.csv").open(newline="") as stream:
        (done,) = [row for row in csv.DictReader(stream) if row["stage"] == "count"]
    assert float(done["selection_leaf"]) == pytest.approx(picked["selection_leaf"])
    assert float(done["selection_level_1"]) == pytest.approx(picked["selection_level_1"])
