"""Which steps a configuration asks for, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from training.config import Config, parse_config
from training.loop.plan import Stage, Step, plan


def stages_of(content: dict[str, Any], linear: bool = False) -> list[Stage]:
    """The stages without their repetitions from epoch to epoch."""
    steps = plan(parse_config({"name": "a", **content}, "c"), linear=linear)
    return [stage for stage, _ in groupby(step.stage for step in steps)]


def test_a_plain_classifier_has_neither_prototypes_nor_thresholds() -> None:
    assert stages_of({"finetune": {"epochs": 2}}, linear=True) == ["finetune", "linear", "calibrate", "finish"]


def test_an_autoencoder_is_assigned_to_leaves_before_its_patches_are_searched() -> None:
    expected = ["start codes", "autoencoder", "assign", "analyse", "centre", "calibrate", "novelty", "finish"]
    assert stages_of({"model": {"kind": "autoencoder"}}) == expected


def test_disabled_stages_are_left_out() -> None:
    off = {"calibration": {"enabled": False}, "novelty": {"enabled": False}, "last_layers": {"epochs": 0}}
    assert stages_of(off)[-4:] == ["project", "analyse", "centre", "finish"]


@pytest.mark.parametrize(("after_each", "between"), [(False, []), (True, ["last layers"])])
def test_projections_come_between_epochs_and_once_at_the_end(after_each: bool, between: list[str]) -> None:
    last = {"epochs": 1, "after_each_projection": after_each}
    found = stages_of({"joint": {"epochs": 6, "project_every": 2}, "last_layers": last})
    middle = ["joint", "project", *between]
    assert found[found.index("joint") : found.index("analyse")] == [*middle, *middle, "joint", "project", "last layers"]


def test_every_epoch_is_a_step_with_its_index(small_config: Callable[..., Config]) -> None:
    steps = plan(small_config(warm={"epochs": 3}), linear=False)
    assert [step for step in steps if step.stage == "warm"] == [Step("warm", epoch, 3) for epoch in range(3)]


def stages_after_projection(content: dict[str, Any]) -> list[Stage]:
    stages = [step.stage for step in plan(parse_config({"name": "a", **content}, "c"), linear=False)]
    return stages[len(stages) - stages[::-1].index("project") :]


def test_counting_replaces_pruning_before_the_patches_are_searched() -> None:
    one: dict[str, Any] = {"last_layers": {"epochs": 1}}
    end = ["analyse", "centre", "calibrate", "novelty", "finish"]
    assert stages_after_projection(one) == ["last layers", *end]
    assert stages_after_projection({**one, "prune": {"enabled": True}}) == ["last layers", "prune", "last layers", *end]
    both = {**one, "prune": {"enabled": True}, "prototypes": {"auto": True}}
    assert stages_after_projection(both) == ["last layers", "count", *end]


def test_the_teacher_comes_before_the_start_that_needs_it(small_config: Callable[..., Config]) -> None:
    stages = [step.stage for step in plan(small_config(start={"share": 0.5}), linear=False)]
    assert stages[:3] == ["reduce", "teach", "initialise"] and stages.count("teach") == 1
    learning = small_config(
        loss={"distillation": 0.5},
        joint={"epochs": 1, "backbone_learning_rate": 1e-4},
        anchored={"epochs": 1},
        start={"share": 0.5},
    )
    stages = [step.stage for step in plan(learning, linear=False)]
    # Once for the start, and once more on the features that the backbone has by then.
    assert [place for place, stage in enumerate(stages) if stage == "teach"] == [1, stages.index("anchor") - 1]


def test_the_teacher_comes_where_the_features_are_fixed(small_config: Callable[..., Config]) -> None:
    frozen = small_config(loss={"distillation": 0.5})
    stages = [step.stage for step in plan(frozen, linear=False)]
    assert stages.index("teach") < stages.index("joint")
    learning = small_config(
        loss={"distillation": 0.5},
        joint={"epochs": 1, "backbone_learning_rate": 1e-4},
    )
    stages = [step.stage for step in plan(learning, linear=False)]
    assert stages.index("project") < stages.index("teach") < stages.index("anchor")
    assert "teach" not in [step.stage for step in plan(small_config(), linear=False)]
