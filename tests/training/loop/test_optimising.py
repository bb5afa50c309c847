"""The optimiser's groups, the learning rate over a stage, and the means of an epoch."""

from __future__ import annotations

import pytest
import torch

from training.loop.optimising import Averages, adam, set_learning_rate


def test_means_weigh_every_image_the_same() -> None:
    averages = Averages({})
    assert averages.means() == {}
    averages.add({"loss": 1.0, "l1": 4.0}, 3)
    averages.add({"loss": 5.0, "l1": 8.0}, 1)
    assert averages.means() == {"loss": 2.0, "l1": 5.0}


def test_a_batch_without_own_images_counts_nothing() -> None:
    averages = Averages({})
    averages.add({"loss": 7.0}, 0)
    assert averages.means() == {"loss": 0.0}


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.5, 0.505), (1.0, 0.01)])
def test_the_rate_of_every_group_falls_to_a_hundredth(progress: float, factor: float) -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimiser = adam([([parameters[0]], 0.1), ([parameters[1]], 0.002)])
    set_learning_rate(optimiser, progress, cosine=True)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.1 * factor, 0.002 * factor])
    set_learning_rate(optimiser, progress, cosine=False)
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, 0.002]


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.05), (0.1, 0.5), (0.19, 0.95), (0.2, 1.0), (0.6, 1.0)])
def test_the_rate_rises_over_the_warm_up(progress: float, share: float) -> None:
    optimiser = adam([([torch.nn.Parameter(torch.ones(1))], 0.1)])
    rates = []
    for warm_up in (0.0, 0.2):
        set_learning_rate(optimiser, progress, cosine=True, warm_up=warm_up)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[1] == pytest.approx(share * rates[0])


def test_the_first_step_is_that_of_adam() -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimiser = adam([([parameter], 0.1)])
    torch.autograd.backward((parameter * torch.tensor([4.0, 0.5])).sum())
    optimiser.step()
    # Without a history the step is the rate times the sign of the gradient.
    assert parameter.tolist() == pytest.approx([1.9, -3.1], abs=1e-5)


def test_weight_decay_spares_vectors() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser = adam([([matrix, vector], 0.1)], weight_decay=0.5)
    torch.autograd.backward(matrix.sum() * 0 + vector.sum() * 0)
    optimiser.step()
    # One step without gradient: 1 − rate × decay.
    assert torch.equal(vector.detach(), torch.ones(2))
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
