"""Several processes that train one network together: who does what, and how what each found becomes one.

`torchrun` starts them and tells each its place. Every process holds the whole network and goes through the same steps;
where a step is long, each does its share and they exchange what they found, so that all end the step alike. A stage
that knows nothing of this does the same work in every process. Only the first process writes the run; the others read
its checkpoint after every step, so the run's folder must lie where all of them see it.
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

# While the first process scores and writes the end of a run, the others wait.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Processes:
    """This process's place among all that train the run (`rank` of `count`) and among those of its host (`local_rank`
    of `local_count`), counted from 0."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
        """This process's part of a batch, never empty, and how much its mean loss counts so that the mean over the
        processes is that of the whole batch; 0 where there was nothing left for it."""
        own = numbers[self.rank :: self.count]
        if not len(own):
            return numbers[:1], 0.0
        return own, len(own) * self.count / len(numbers)

    def stripe(self, count: int, rank: int | None = None) -> slice:
        """The consecutive items of `count` that a process looks after, this one unless `rank` names another."""
        place = self.rank if rank is None else rank
        return slice(place * count // self.count, (place + 1) * count // self.count)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Replace each gradient by its mean over the processes, this one's times `weight`."""
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
        # One exchange for all of them: what it costs is mostly its start.
        together = torch.cat([gradient.reshape(-1) for gradient in gradients]) * (weight / self.count)
        distributed.all_reduce(together)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, torch.split(together, sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors, such as the statistics of batch normalisation, by their mean over the
        processes; others are left as they are."""
        if self.count == 1:
            return
        for tensor in tensors:
            if tensor.is_floating_point():
                distributed.all_reduce(tensor)
                tensor /= self.count

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """The sums over the processes of named numbers, which must have the same names in all of them."""
        if self.count == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        distributed.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def joined(self, rows: Tensor, count: int) -> Tensor:
        """The rows [count, …] of all processes, each of which gives those of its stripe; on the device of `rows`."""
        if self.count == 1:
            return rows
        longest = -(-count // self.count)
        padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows.cpu()
        found = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(found, padded)
        stripes = [self.stripe(count, rank) for rank in range(self.count)]
        pieces = [part[: stripe.stop - stripe.start] for part, stripe in zip(found, stripes, strict=True)]
        return torch.cat(pieces).to(rows.device)

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """A tensor of the same shape from each process, in the order of their ranks."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(parts, tensor.contiguous())
        return parts


ALONE = Processes()


@contextmanager
def joined_processes(*, cuda: bool) -> Iterator[Processes]:
    """This process's place among those that `torchrun` started, connected while the block runs; one alone without it.

    Raises InputError where only a part of what `torchrun` sets is there.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = [name for name in names if name in os.environ]
    if "WORLD_SIZE" not in given or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    if missing := [name for name in names if name not in given]:
        raise InputError(
            f"WORLD_SIZE is set but not {', '.join(missing)}; start several processes with 'torchrun "
            "--nproc-per-node N -m training …', or unset WORLD_SIZE for one"
        )
    rank, count, local_rank, local_count = (int(os.environ[name]) for name in names[:4])
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank + 1} of this host finds {torch.cuda.device_count()} GPUs; "
                "start torchrun with as many processes per node as there are"
            )
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, count, local_rank, local_count)
    finally:
        distributed.destroy_process_group()
