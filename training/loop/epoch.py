"""One epoch of training: descend along an objective batch after batch, and keep the best weights of several epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.run.records import SelectionAccuracy
from training.data.batches import epoch_batches
from training.loop.optimising import Averages, set_learning_rate
from training.loop.plan import Step
from training.loop.trainer import Trainer
from training.progress import tracked


class Batch(NamedTuple):
    """A process's part of a batch: `numbers` of its images, the `weight` of their mean loss (see
    `Processes.average_gradients`), the `size` of the whole batch, and the share of the epoch `done` before it.

    With `weight` None every process trains on the whole batch, and nothing is exchanged.
    """

    numbers: NDArray[np.int64]
    weight: float | None
    size: int
    done: float

    @property
    def own(self) -> int:
        """How many images this process adds to the batch: none where it holds one only to take part."""
        return len(self.numbers) if self.weight != 0 else 0


# From the image numbers of a batch and its inputs to the terms of the loss by name, scalars; the first is minimised.
Objective = Callable[[NDArray[np.int64], Tensor], dict[str, Tensor]]


def whole_batches(batches: Iterable[tuple[NDArray[np.int64], float]]) -> list[Batch]:
    """Batches (image numbers, share of the epoch done) that every process trains on as a whole."""
    return [Batch(numbers, None, len(numbers), done) for numbers, done in batches]


def shared_batches(trainer: Trainer) -> list[Batch]:
    """This process's part of every batch of an epoch over the fit images."""
    seed = (trainer.config.seed, trainer.state.step)
    batches = epoch_batches(len(trainer.splits.fit), trainer.config.batch, seed)
    return [Batch(*trainer.processes.share(numbers), len(numbers), done) for numbers, done in batches]


def images_in(batches: Iterable[Batch]) -> int:
    """How many images there are in this process's part of the batches."""
    return sum(len(batch.numbers) for batch in batches)


def with_inputs(
    batches: Sequence[Batch], inputs: Iterable[tuple[NDArray[np.int64], Tensor]]
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches beside what `Feed` gives for their image numbers."""
    for batch, (_, tensor) in zip(batches, inputs, strict=True):
        yield batch, tensor


def epoch(
    trainer: Trainer,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[tuple[Batch, Tensor]],
    objective: Objective,
    *,
    step: Step,
    cosine: bool,
    images: int | None = None,
) -> dict[str, float]:
    """Train one epoch, and return the means of the objective's terms over its images.

    The learning rate falls along a cosine over all epochs of `step` where `cosine` holds. With `images`, the number of
    this process's images, a progress bar is shown. Raises InputError for a loss that is not finite.
    """
    averages, shared = Averages({}), False
    label = f"{step.stage}, epoch {step.epoch + 1} of {step.epochs}"
    bar = tracked(trainer.console, label, images) if images else nullcontext(lambda done: None)
    with bar as advance:
        for batch, inputs in batches:
            set_learning_rate(optimiser, (step.epoch + batch.done) / step.epochs, cosine)
            terms = objective(batch.numbers, inputs)
            _descend(trainer, next(iter(terms.values())), optimiser, batch.weight)
            # All at once: each number asked for waits for the device.
            values = torch.stack([term.detach() for term in terms.values()]).tolist()
            averages.add(dict(zip(terms, values, strict=True)), batch.own)
            shared = batch.weight is not None
            advance(len(batch.numbers))
    return trainer.means(averages) if shared else averages.means()


def _descend(trainer: Trainer, loss: Tensor, optimiser: torch.optim.Optimizer, weight: float | None) -> None:
    """Take one step down the gradient of `loss`."""
    if not torch.isfinite(loss):
        raise InputError(
            f"the loss is {float(loss.detach())} in step {trainer.state.step + 1} ({trainer.step.stage}); "
            "lower this stage's learning rate or the weight of a term of the loss in the configuration"
        )
    optimiser.zero_grad(set_to_none=True)
    trainer.scaler.scale(loss).backward()
    if weight is not None:
        parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
        trainer.processes.average_gradients(parameters, weight)
    trainer.scaler.step(optimiser)
    trainer.scaler.update()


class KeepBest:
    """The weights that classify the selection images best so far, kept in `tensors` under the name of their stage."""

    def __init__(self, tensors: dict[str, Tensor], stage: str) -> None:
        self.tensors, self._prefix = tensors, f"{stage}."

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Keep copies of these weights, by their names in the module that `restore` is given."""
        for name, tensor in weights.items():
            self.tensors[self._prefix + name] = tensor.detach().clone()

    def offer(self, weights: Mapping[str, Tensor], accuracy: SelectionAccuracy, best: SelectionAccuracy) -> bool:
        """Keep the weights if their accuracy is better than the `best` so far; returns whether it is."""
        better = merit(accuracy) > merit(best)
        if better:
            self.keep(weights)
        return better

    def restore(self, module: nn.Module) -> None:
        """Give a module the weights kept, and forget them."""
        names = [name for name in self.tensors if name.startswith(self._prefix)]
        weights = {name.removeprefix(self._prefix): self.tensors.pop(name) for name in names}
        module.load_state_dict(weights, strict=False)


def merit(accuracy: SelectionAccuracy) -> tuple[float, float]:
    """What stages choose weights by: the accuracy over leaves, then that at level 1."""
    return accuracy.selection_leaf, accuracy.selection_level_1
