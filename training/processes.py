"""Data-parallel training: how several processes divide the work on one network and combine their results.

`torchrun` starts the processes and gives each its rank. Every process holds the whole network and goes through the same
steps. In a long step each process does its share and they exchange results, so that all end the step in the same state.
A stage that does not use this module does the same work in every process. Only the first process writes the run. The
others read its checkpoint after every step, so all of them must see the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from protoserve.errors import InputError

# A collective operation fails after this time. The first process may do a long step alone while the others wait.
TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class Processes:
    """This process's `rank` among the `count` processes of the run, and its `local_rank` among the `local_count`
    processes of its host; ranks count from 0."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
        """This process's part of a batch of image numbers, and the weight of its mean loss.

        Weighted so, the mean over processes is the mean over the whole batch. The part is never empty: a process for
        which no image is left gets the first one with weight 0.
        """
        own = numbers[self.rank :: self.count]
        if not len(own):
            return numbers[:1], 0.0
        return own, len(own) * self.count / len(numbers)

    def stripe(self, count: int, rank: int | None = None) -> slice:
        """The range of `count` items that belongs to a process: this one, or the one of `rank`."""
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.count, (rank + 1) * count // self.count)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.count > 1:
            distributed.barrier()

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Replace each gradient by its mean over processes, after multiplying this process's by `weight`."""
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
        # One exchange for all gradients: most of its cost is latency.
        together = torch.cat([gradient.reshape(-1) for gradient in gradients]) * (weight / self.count)
        distributed.all_reduce(together)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, torch.split(together, sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors, such as the statistics of batch normalisation, by their mean over processes;
        leave other tensors as they are."""
        if self.count == 1:
            return
        for tensor in tensors:
            if tensor.is_floating_point():
                distributed.all_reduce(tensor)
                tensor /= self.count

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """The sums of named numbers over processes; the names must be the same in all of them."""
        if self.count == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        distributed.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def joined(self, rows: Tensor, count: int) -> Tensor:
        """The rows [count, …] of all processes, on the device of `rows`; each process passes those of its stripe."""
        if self.count == 1:
            return rows
        longest = -(-count // self.count)
        padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows.cpu()
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(gathered, padded)
        stripes = [self.stripe(count, rank) for rank in range(self.count)]
        pieces = [part[: stripe.stop - stripe.start] for part, stripe in zip(gathered, stripes, strict=True)]
        return torch.cat(pieces).to(rows.device)

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors that all processes pass, of the same shape, in order of rank."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(parts, tensor.contiguous())
        return parts


ALONE = Processes()


@contextmanager
def joined_processes(*, cuda: bool) -> Iterator[Processes]:
    """Connect this process to the others that `torchrun` started while the block runs; `ALONE` without torchrun.

    Raises InputError if only some of the variables that `torchrun` sets are set, and if `cuda` has no GPU for this
    process.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    if missing := [name for name in names if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is set but not {', '.join(missing)}; start several processes with 'torchrun "
            "--nproc-per-node N -m training …', or unset WORLD_SIZE for one"
        )
    rank, count, local_rank, local_count = (int(os.environ[name]) for name in names[:4])
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank + 1} on this host has no GPU: the host has {torch.cuda.device_count()}; "
                "start torchrun with at most one process per GPU"
            )
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(rank, count, local_rank, local_count)
    finally:
        distributed.destroy_process_group()
