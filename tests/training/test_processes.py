"""How work is divided; that the processes then agree is tested with two of them in tests/e2e/test_distributed.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protoserve.errors import InputError
from training.processes import ALONE, Processes, joined_processes


def processes(count: int) -> list[Processes]:
    return [Processes(rank, count, rank, count) for rank in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_shares_make_up_the_batch_and_its_mean(count: int, size: int) -> None:
    numbers = np.random.default_rng(0).permutation(100)[:size]
    losses = np.random.default_rng(1).normal(size=100)
    shares = [place.share(numbers) for place in processes(count)]
    own = [part for part, weight in shares if weight > 0]
    assert sorted(np.concatenate(own).tolist()) == sorted(numbers.tolist())
    assert all(len(part) for part, _ in shares), "a process without images would miss the exchange of gradients"
    mean = sum(weight * losses[part].mean() for part, weight in shares) / count
    assert mean == pytest.approx(losses[numbers].mean())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [7, 20, 100])
def test_stripes_are_consecutive_even_and_complete(count: int, items: int) -> None:
    stripes = [place.stripe(items) for place in processes(count)]
    assert [item for stripe in stripes for item in range(items)[stripe]] == list(range(items))
    sizes = [stripe.stop - stripe.start for stripe in stripes]
    assert max(sizes) - min(sizes) <= 1
    assert [processes(count)[0].stripe(items, rank) for rank in range(count)] == stripes


def test_one_process_alone_exchanges_nothing() -> None:
    rows = torch.rand(5, 2)
    assert ALONE.joined(rows, 5) is rows
    assert ALONE.total({"loss": 2.0}) == {"loss": 2.0}
    ALONE.wait()
    with joined_processes(cuda=False) as alone:
        assert alone == ALONE and alone.first


def test_a_part_of_torchruns_variables_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"not LOCAL_RANK, .*torchrun --nproc-per-node"), joined_processes(cuda=False):
        pass
