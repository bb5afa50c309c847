"""Where prototypes start: at centres of their own class's cells, of those that a plain classifier finds telling."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.data.splits import read_splits
from training.loop.plan import plan
from training.loop.trainer import Trainer
from training.prototypes.starting import start_from_data
from training.running import STAGES
from training.stages.teaching import BIAS, WEIGHT, class_activation_mask


def trainer_of(config, data, directory, until=None):
    """A trainer that has gone through the steps before the first one of stage `until`."""
    directory.mkdir()
    console = Console(stderr=True, quiet=True)
    splits = read_splits(config, data)
    made = Trainer(config, splits, directory, linear=False, device=torch.device("cpu"), console=console)
    while until is not None and made.step.stage != until:
        torch.manual_seed(made.state.step)
        STAGES[made.step.stage](made)
        made.state.step += 1
    return made


def test_prototypes_start_in_the_chosen_cells_of_their_own_class() -> None:
    """Cells of column 0 are near 0, of column 1 near their leaf's own value; inner nodes see column 1 alone."""
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B"])
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 1, 1), 2)
    leaves = np.repeat(np.arange(3), 4)

    def latent(numbers):
        found = torch.zeros(len(numbers), 2, 1, 2)
        found[:, :, 0, 1] = torch.from_numpy(leaves[numbers] + 1.0).float()[:, None]
        return found + 1e-3 * torch.randn(found.shape)

    def telling(child, numbers):
        if child in taxonomy.leaves:
            return None
        assert set(leaves[numbers]) <= set(np.flatnonzero(taxonomy.leaves_below[child]))
        return torch.tensor([False, True]).expand(len(numbers), 1, 2)

    start_from_data(head, latent, leaves, 0, telling, lambda count: None)
    found = {
        taxonomy.names[child]: head.prototypes[place].tolist()
        for place, child in enumerate(head.grouping.prototype_child)
    }
    # Leaves' centres lie half-way between the columns, their parent's half-way between its leaves' own values.
    expected = {taxonomy.names[leaf]: (place + 1) / 2 for place, leaf in enumerate(taxonomy.leaves)}
    expected["A"] = expected["A/x"] + expected["A/y"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx([value, value], abs=0.02), name


def test_cells_that_speak_for_the_leaf_are_chosen(
    small_config: Callable[..., Config], small_data: Path, tmp_path: Path
) -> None:
    config = small_config(loss={"distillation": 1.0}, start={"share": 0.25})
    trainer = trainer_of(config, small_data, tmp_path / "run", until="initialise")
    weight = trainer.state.kept[WEIGHT]
    numbers = np.array([3, 0, 8, 5])
    found = class_activation_mask(trainer, numbers, 0.25)
    features = trainer.feed.still("fit", numbers)
    assert found.shape == features[:, 0].shape
    for place, number in enumerate(numbers.tolist()):
        leaf = trainer.splits.fit.leaves[number]
        # What a cell adds to the leaf's logit, less what it adds to all logits in the mean.
        logits = torch.einsum("wrc,lw->lrc", features[place], weight)
        speaks = (logits[leaf] - logits.mean(0)).flatten()
        strongest = speaks.argsort(descending=True)[: int(found[place].sum())]
        assert set(found[place].flatten().nonzero()[:, 0].tolist()) == set(strongest.tolist())
        assert int(found[place].sum()) == pytest.approx(0.25 * speaks.numel(), abs=1)


def test_the_teacher_is_kept_only_where_it_goes_on_teaching(
    small_config: Callable[..., Config], small_data: Path, tmp_path: Path
) -> None:
    for name, sections, stays in (
        ("teaches", {"loss": {"distillation": 1.0}}, True),
        ("starts-only", {}, False),
        ("learns", {"loss": {"distillation": 1.0}, "joint": {"epochs": 1, "backbone_learning_rate": 1e-4}}, False),
    ):
        config = small_config(start={"share": 0.5}, **sections)
        trainer = trainer_of(config, small_data, tmp_path / name, until="initialise")
        assert {WEIGHT, BIAS} <= trainer.state.kept.keys()
        STAGES["initialise"](trainer)
        assert (WEIGHT in trainer.state.kept) is stays, name


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
