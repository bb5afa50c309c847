"""One epoch of training: minimise an objective batch by batch, and keep the best weights of several epochs."""

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
    """A process's part of a batch: the `numbers` of its images, the `weight` of their mean loss (see
    `Processes.share`), the `size` of the whole batch, and `done`, the share of the epoch before it.

    If `weight` is None, every process trains on the whole batch, without exchanging gradients.
    """

    numbers: NDArray[np.int64]
    weight: float | None
    size: int
    done: float

    @property
    def own(self) -> int:
        """The number of images of this process that count: 0 if its only image has weight 0."""
        return len(self.numbers) if self.weight != 0 else 0


# Maps the image numbers of a batch and its inputs to the terms of the loss by name, all scalars. `epoch` minimises the
# first term.
Objective = Callable[[NDArray[np.int64], Tensor], dict[str, Tensor]]


def whole_batches(batches: Iterable[tuple[NDArray[np.int64], float]]) -> list[Batch]:
    """Batches of (image numbers, share of the epoch done) that every process trains on in full."""
    return [Batch(numbers, None, len(numbers), done) for numbers, done in batches]


def shared_batches(trainer: Trainer) -> list[Batch]:
    """This process's part of every batch of an epoch over the fit images."""
    seed = (trainer.config.seed, trainer.state.step)
    batches = epoch_batches(len(trainer.splits.fit), trainer.config.batch, seed)
    return [Batch(*trainer.processes.share(numbers), len(numbers), done) for numbers, done in batches]


def images_in(batches: Iterable[Batch]) -> int:
    """The number of images in this process's parts of the batches."""
    return sum(len(batch.numbers) for batch in batches)


def with_inputs(
    batches: Sequence[Batch], inputs: Iterable[tuple[NDArray[np.int64], Tensor]]
) -> Iterator[tuple[Batch, Tensor]]:
    """Pair each batch with the tensor that `Feed` yields for its image numbers."""
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
    warm_up: float = 0.0,
    images: int | None = None,
) -> dict[str, float]:
    """Train for one epoch, and return the means of the objective's terms over its images.

    With `cosine`, the learning rate decays along a cosine over all epochs of `step`; it rises over the first share
    `warm_up` of them. With `images`, the number of this
    process's images, shows progress. Raises InputError if the loss is not finite.
    """
    averages, shared = Averages({}), False
    label = f"{step.stage}, epoch {step.epoch + 1} of {step.epochs}"
    bar = tracked(trainer.console, label, images) if images else nullcontext(lambda done: None)
    with bar as advance:
        for batch, inputs in batches:
            set_learning_rate(optimiser, (step.epoch + batch.done) / step.epochs, cosine, warm_up)
            terms = objective(batch.numbers, inputs)
            _descend(trainer, next(iter(terms.values())), optimiser, batch.weight)
            # Copy all terms at once, since each copy synchronises with the device.
            values = torch.stack([term.detach() for term in terms.values()]).tolist()
            averages.add(dict(zip(terms, values, strict=True)), batch.own)
            shared = batch.weight is not None
            advance(len(batch.numbers))
    return trainer.means(averages) if shared else averages.means()


def _descend(trainer: Trainer, loss: Tensor, optimiser: torch.optim.Optimizer, weight: float | None) -> None:
    """Take one optimiser step on `loss`."""
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
    """Keeps the weights with the best accuracy on the selection images so far in `tensors`, under the name of their
    stage."""

    def __init__(self, tensors: dict[str, Tensor], stage: str) -> None:
        self.tensors, self._prefix = tensors, f"{stage}."

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Keep copies of these weights, by their names in the module passed to `restore`."""
        for name, tensor in weights.items():
            self.tensors[self._prefix + name] = tensor.detach().clone()

    def offer(self, weights: Mapping[str, Tensor], accuracy: SelectionAccuracy, best: SelectionAccuracy) -> bool:
        """Keep the weights if their accuracy is better than the `best` so far; return whether it is."""
        better = selection_order(accuracy) > selection_order(best)
        if better:
            self.keep(weights)
        return better

    def restore(self, module: nn.Module) -> None:
        """Load the kept weights into a module, and drop them."""
        names = [name for name in self.tensors if name.startswith(self._prefix)]
        weights = {name.removeprefix(self._prefix): self.tensors.pop(name) for name in names}
        module.load_state_dict(weights, strict=False)


def selection_order(accuracy: SelectionAccuracy) -> tuple[float, float]:
    """The key by which stages compare weights: leaf accuracy first, then accuracy at level 1."""
    return accuracy.selection_leaf, accuracy.selection_level_1
