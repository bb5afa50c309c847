"""One epoch against steps worked by hand, shares of batches, and the best weights of several epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.run.records import SelectionAccuracy
from training.config import Config
from training.loop.epoch import (
    Batch,
    KeepBest,
    epoch,
    images_in,
    selection_order,
    shared_batches,
    whole_batches,
    with_inputs,
)
from training.loop.plan import Step
from training.loop.trainer import Trainer
from training.processes import Processes


@pytest.fixture
def trainer(small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path) -> Trainer:
    return trainer_at(small_config(), tmp_path / "run")


def descent(start: float, rate: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A number to learn, and plain gradient descent on it."""
    number = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    return number, torch.optim.SGD([{"params": [number], "lr": rate, "initial_lr": rate}])


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_every_image_is_in_one_batch_of_the_epoch(trainer: Trainer) -> None:
    batches, images = shared_batches(trainer), len(trainer.splits.fit)
    assert sorted(np.concatenate([batch.numbers for batch in batches]).tolist()) == list(range(images))
    assert [batch.size for batch in batches] == [8] * (images // 8) + ([images % 8] if images % 8 else [])
    assert [batch.done for batch in batches] == pytest.approx([8 * place / images for place in range(len(batches))])
    assert all(batch.weight == 1.0 and batch.own == batch.size for batch in batches)
    assert images_in(batches) == images


def test_another_step_or_seed_has_another_order(
    trainer: Trainer, small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    def order(trainer: Trainer) -> list[int]:
        return [number for batch in shared_batches(trainer) for number in batch.numbers.tolist()]

    first = order(trainer)
    assert order(trainer) == first
    assert order(trainer_at(small_config(seed=1), tmp_path / "other")) != first
    trainer.state.step += 1
    assert order(trainer) != first


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_weighted_means_of_all_processes_are_the_mean_of_each_batch(trainer: Trainer, count: int) -> None:
    values = np.random.default_rng(0).normal(size=len(trainer.splits.fit))
    whole = shared_batches(trainer)
    parts = []
    for rank in range(count):
        trainer.processes = Processes(rank, count, rank, count)
        parts.append(shared_batches(trainer))
    for place, batch in enumerate(whole):
        shares = [part[place] for part in parts]
        own = [number for share in shares if share.own for number in share.numbers.tolist()]
        assert sorted(own) == sorted(batch.numbers.tolist())
        assert all(share.size == batch.size and share.done == batch.done for share in shares)
        # Gradients are averaged over the processes, each of which has the mean over its own images.
        weighted = [share.weight * values[share.numbers].mean() for share in shares if share.weight is not None]
        assert sum(weighted) / count == pytest.approx(values[batch.numbers].mean())


def test_a_share_without_images_counts_none_of_those_it_holds() -> None:
    assert Batch(np.array([4]), 0.0, 1, 0.0).own == 0
    assert Batch(np.array([4, 2]), 1.5, 3, 0.0).own == 2
    assert Batch(np.array([4, 2]), None, 2, 0.0).own == 2


def test_whole_batches_are_shared_by_no_processes() -> None:
    batches = whole_batches([(np.array([3, 1]), 0.0), (np.array([2]), 2 / 3)])
    assert [(batch.numbers.tolist(), *batch[1:]) for batch in batches] == [
        ([3, 1], None, 2, 0.0),
        ([2], None, 1, 2 / 3),
    ]


def test_batches_go_with_the_inputs_of_their_own_numbers() -> None:
    batches = whole_batches([(np.array([3, 1]), 0.0), (np.array([2]), 2 / 3)])
    inputs = [(batch.numbers, torch.tensor(batch.numbers * 10)) for batch in batches]
    assert [(batch.numbers.tolist(), tensor.tolist()) for batch, tensor in with_inputs(batches, inputs)] == [
        ([3, 1], [30, 10]),
        ([2], [20]),
    ]
    with pytest.raises(ValueError, match="shorter"):
        list(with_inputs(batches, inputs[:1]))


# ---- one epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [False, True])
def test_an_epoch_descends_the_first_term_at_the_rate_of_its_place(trainer: Trainer, cosine: bool) -> None:
    """(x − target)² has the gradient 2 (x − target); the second term is reported alone."""
    targets = {0: 1.0, 1: 3.0, 2: -2.0}
    batches = [Batch(np.array([0, 1]), 1.0, 2, 0.0), Batch(np.array([2]), 1.0, 1, 0.5)]
    inputs = [torch.tensor([targets[number] for number in batch.numbers.tolist()]).double() for batch in batches]
    number, optimiser = descent(0.0, 0.1)

    def objective(numbers: NDArray[np.int64], given: Tensor) -> dict[str, Tensor]:
        assert given.tolist() == [targets[image] for image in numbers.tolist()]
        return {"total": (number - given).square().mean(), "size": number.abs() * 1000}

    pairs = zip(batches, inputs, strict=True)
    row = epoch(trainer, optimiser, pairs, objective, step=Step("joint", 1, 3), cosine=cosine)
    rates = [0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * (1 + done) / 3)) / 2) if cosine else 0.1 for done in (0, 0.5)]
    first = 0.0 - rates[0] * 2 * (0.0 - 2.0)  # the mean gradient at the mean of 1 and 3
    second = first - rates[1] * 2 * (first + 2.0)
    assert number.item() == pytest.approx(second, rel=1e-12)
    # Terms from before each step, means over images: (0 − 1)² and (0 − 3)², then (x + 2)².
    assert row == pytest.approx({"total": (1 + 9 + (first + 2) ** 2) / 3, "size": 1000 * abs(first) / 3})


def test_a_batch_of_weight_0_counts_in_no_mean(trainer: Trainer) -> None:
    number, optimiser = descent(1.0, 0.0)
    batches = [Batch(np.array([0, 1, 2]), 1.0, 3, 0.0), Batch(np.array([3]), 0.0, 1, 0.75)]
    values = (torch.tensor(2.0), torch.tensor(100.0))
    row = epoch(
        trainer,
        optimiser,
        zip(batches, values, strict=True),
        lambda _, value: {"loss": number * value},
        step=Step("warm"),
        cosine=False,
    )
    assert row == {"loss": 2.0}


class Twice(Processes):
    """Two processes that found the same sums."""

    def total(self, values: dict[str, float]) -> dict[str, float]:
        return {name: 2 * value for name, value in values.items()} | {"count": 3 * values["count"]}


@pytest.mark.parametrize(("weight", "expected"), [(None, 6.0), (1.0, 4.0)])
def test_means_are_those_of_all_processes_only_where_batches_are_shared(
    trainer: Trainer, weight: float | None, expected: float
) -> None:
    trainer.processes = Twice()
    number, optimiser = descent(1.0, 0.0)
    batches = [(Batch(np.array([0, 1]), weight, 2, 0.0), torch.tensor(6.0))]
    row = epoch(trainer, optimiser, batches, lambda _, value: {"loss": number * value}, step=Step("warm"), cosine=False)
    assert row == {"loss": pytest.approx(expected)}


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_changes_a_weight(trainer: Trainer, factor: float) -> None:
    number, optimiser = descent(1.0, 0.1)
    batches = [(Batch(np.array([0]), 1.0, 1, 0.0), torch.tensor(factor))]
    trainer.state.step = 2
    with pytest.raises(InputError, match=rf"the loss is {factor} in step 3 \(warm\); lower this stage's learning rate"):
        epoch(trainer, optimiser, batches, lambda _, value: {"loss": number * value}, step=Step("warm"), cosine=False)
    assert number.item() == 1.0


# ---- the best of several epochs --------------------------------------------------------------------------------------


def accuracy(leaf: float, level_1: float) -> SelectionAccuracy:
    return SelectionAccuracy(selection_leaf=leaf, selection_level_1=level_1)


def test_leaves_count_before_level_1() -> None:
    worst, middle, best = accuracy(0.4, 0.9), accuracy(0.5, 0.6), accuracy(0.5, 0.7)
    assert sorted([best, worst, middle], key=selection_order) == [worst, middle, best]


def test_the_best_weights_are_kept_and_restored_once() -> None:
    tensors = {"anchor.weight": torch.tensor([9.0])}
    module = nn.Linear(2, 1)
    best = KeepBest(tensors, "joint")
    weights = {"weight": module.weight}
    offers = [
        (accuracy(0.5, 0.5), True),
        (accuracy(0.5, 0.5), False),
        (accuracy(0.5, 0.6), True),
        (accuracy(0.4, 1), False),
    ]
    so_far = accuracy(0.0, 0.0)
    for value, (found, better) in enumerate(offers):
        with torch.no_grad():
            module.weight.fill_(value)
            module.bias.fill_(value)
        assert best.offer(weights, found, so_far) is better
        so_far = found if better else so_far
    assert set(tensors) == {"anchor.weight", "joint.weight"}
    best.restore(module)
    # The bias was not kept.
    assert module.weight.tolist() == [[2.0, 2.0]] and module.bias.tolist() == [3.0]
    assert tensors == {"anchor.weight": torch.tensor([9.0])}
