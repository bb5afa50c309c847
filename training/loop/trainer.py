"""The trainer: runs the steps of a plan, writes checkpoints, and resumes from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import ExplainedNetwork, Network, NetworkDescription, save_whole
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from protoserve.run.records import Scores, SelectionAccuracy
from protoserve.scores import scores
from training.config import Config
from training.data.batches import slices
from training.data.pictures import PLAIN, Views
from training.data.splits import Splits
from training.features.building import build_any, new_network
from training.features.feed import Feed
from training.features.memory import PicturesInMemory
from training.features.precision import Learning, half_precision
from training.features.shared_cache import SharedCache
from training.loop.checkpoints import CHECKPOINT, FORMAT, State, read_checkpoint, read_state, state_content
from training.loop.optimising import Averages, adam
from training.loop.plan import Stage, Step, plan
from training.loop.tensorboard import Board
from training.losses import LossTables, loss_tables
from training.processes import ALONE, Processes


class Trainer:
    """One run in one folder. `run` does the remaining steps and writes a checkpoint after each.

    A stage is a function of the trainer that does one step and returns the figures for its row of the history. It may
    change only what a checkpoint holds: the network, the state, and the optimisers made by `optimiser`.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        directory: Path,
        *,
        linear: bool,
        device: torch.device,
        console: Console,
        processes: Processes = ALONE,
        cache: SharedCache | None = None,
    ) -> None:
        self.config, self.splits, self.directory = config, splits, directory
        self.linear, self.device, self.console, self.processes = linear, device, console, processes
        if (fewest := min(len(splits.fit), len(splits.selection))) < processes.count:
            raise InputError(f"{processes.count} processes for {fewest} images to fit or select on; start fewer")
        self.steps = plan(config, linear)
        self.state = State()
        torch.manual_seed(config.seed)
        self.optimisers: dict[Stage, torch.optim.Optimizer] = {}
        self._stored_optimisers: dict[Stage, Any] = {}
        description, network = new_network(config, splits.fit.taxonomy, linear, device)
        half = half_precision(config.precision, device)
        # Only float16 needs scaling, because its small gradients underflow; otherwise the scaler does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
        self.source: Feed | PicturesInMemory
        if isinstance(network, PrototypeAutoencoder):
            self.source = PicturesInMemory(splits.fit, splits.selection, config.image, device, console)
        else:
            self.source = Feed(
                splits.fit,
                splits.selection,
                views=Views(config.image, config.data_seed, config.data.zoom, config.data.mirror, config.data.views),
                learning=_learning(config, len(splits.fit)),
                seed=config.seed,
                batch=config.batch,
                workers=config.data.workers,
                directory=directory / "cache",
                device=device,
                console=console,
                processes=processes,
                shared=cache,
            )
        # Tensors that a stage computes once for all its epochs. Not in the checkpoint; a resumed run computes them
        # again.
        self.stage_cache: dict[str, Tensor] = {}
        self._stage_ended = False
        self.replace_network(description, network)

    def replace_network(self, description: NetworkDescription, network: Network) -> None:
        """Train this network from now on, for example one with fewer prototypes. It must be on the run's device."""
        self.description, self.network = description, network
        self._plain: LinearNetwork | None = None
        self._tables: LossTables | None = None
        if isinstance(network, PrototypeAutoencoder):
            self.memory.use(network)
            return
        self.feed.use(network)
        # Fine-tuning trains a linear head on the backbone, even if the run's own head has prototypes.
        if isinstance(network, LinearNetwork):
            self._plain = network
        else:
            taxonomy = self.splits.fit.taxonomy
            plain = LinearNetwork(network.backbone, taxonomy, self.config.model.dropout)
            self._plain = plain.to(self.device).eval()
            self._tables = self.tables_of(network.head)

    # ---- running the steps -----------------------------------------------------------------------------------

    @property
    def step(self) -> Step:
        """The current step."""
        return self.steps[self.state.step]

    def run(self, stages: Mapping[Stage, Callable[[Trainer], dict[str, float]]], board: Board | None = None) -> None:
        """Do all remaining steps except the last, `finish`, which is left to the caller; also write their rows to
        `board`."""
        while self.step.stage != "finish":
            began = time.perf_counter()
            step = self.step
            # Dropout draws different numbers in every process.
            torch.manual_seed((self.config.seed * 1_000_003 + self.state.step) + self.processes.rank * 7_368_787_003)
            self._set_backbone_state()
            row = stages[step.stage](self)
            self.state.history.append({"step": self.state.step, "stage": step.stage, "epoch": step.epoch + 1, **row})
            self._print_row(step, row)
            if board is not None:
                board.add(self.state.history[-1])
            if step.epoch + 1 == step.epochs or self._stage_ended:
                self.optimisers.pop(step.stage, None)
                self.stage_cache.clear()
            self.state.step = self._last(step.stage) + 1 if self._stage_ended else self.state.step + 1
            self._stage_ended = False
            self.state.seconds += time.perf_counter() - began
            self.save()

    def continue_alone(self) -> None:
        """Do the rest of the run in this process only; the other processes have ended."""
        self.processes = ALONE
        if isinstance(self.source, Feed):
            self.source.continue_alone()

    def end_stage(self) -> None:
        """Make the current step the last of its stage: skip its remaining steps and all steps between them."""
        self._stage_ended = True

    def _last(self, stage: Stage) -> int:
        """The number of a stage's last step."""
        return max(number for number, step in enumerate(self.steps) if step.stage == stage)

    def _set_backbone_state(self) -> None:
        """Tell the feed whether the backbone is frozen in this step, and how many times it has been trained."""
        learns = not self.linear and self.config.joint.backbone_learning_rate > 0 and self.config.joint.epochs > 0
        if learns:
            first = next(number for number, step in enumerate(self.steps) if step.stage == "joint")
            learning = first <= self.state.step <= self._last("joint")
            self.feed.set_backbone(frozen=not learning, version=int(self.state.step > self._last("joint")))

    def _print_row(self, step: Step, row: dict[str, float]) -> None:
        label = f"{step.stage} {step.epoch + 1}/{step.epochs}" if step.epochs > 1 else step.stage
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        self.console.print(
            f"[{self.state.step + 1:>3}/{len(self.steps)}] {label:<18} {figures}", markup=False, soft_wrap=True
        )

    # ---- what stages use -------------------------------------------------------------------------------------

    @property
    def feed(self) -> Feed:
        """The pictures and features of a run whose network has a backbone."""
        assert isinstance(self.source, Feed)
        return self.source

    @property
    def memory(self) -> PicturesInMemory:
        """The pictures of a run whose network is an autoencoder."""
        assert isinstance(self.source, PicturesInMemory)
        return self.source

    @property
    def explained_network(self) -> ExplainedNetwork:
        """The network of a run that has prototypes."""
        assert not isinstance(self.network, LinearNetwork)
        return self.network

    @property
    def prototype_network(self) -> PrototypeNetwork:
        """The network of a run that has prototypes on a backbone."""
        assert isinstance(self.network, PrototypeNetwork)
        return self.network

    @property
    def autoencoder(self) -> PrototypeAutoencoder:
        """The network of a run whose network is an autoencoder."""
        assert isinstance(self.network, PrototypeAutoencoder)
        return self.network

    @property
    def plain(self) -> LinearNetwork:
        """The network of the run's backbone and the linear head that fine-tuning trains."""
        assert self._plain is not None
        return self._plain

    @property
    def tables(self) -> LossTables:
        """The loss tables of the network's head."""
        assert self._tables is not None
        return self._tables

    def tables_of(self, head: PrototypeHead) -> LossTables:
        """The loss tables of a head for the labels of the fit images."""
        return loss_tables(head, inner=not self.splits.fit.to_leaf.all())

    @cached_property
    def possible_leaves(self) -> Tensor | None:
        """bool [labels, leaves]: the leaves that a picture of each label may have, on the run's device; None where all
        fit images are labelled down to a leaf."""
        fit = self.splits.fit
        return None if fit.to_leaf.all() else torch.from_numpy(fit.taxonomy.leaves_of_label).to(self.device)

    @torch.inference_mode()
    def latent(self, numbers: NDArray[np.int64], view: int = PLAIN) -> Tensor:
        """Latent maps [images, D, rows, columns] of fit images in one view."""
        return torch.cat([*self.latents(numbers, view)])

    @torch.inference_mode()
    def latents(self, numbers: NDArray[np.int64], view: int = PLAIN) -> Iterator[Tensor]:
        """Latent maps [batch, D, rows, columns] of fit images in one view, batch by batch."""
        for features in self.source.features("fit", slices(numbers, self.config.batch), view):
            yield self.explained_network.latent(features)

    def select_prototypes(self) -> SelectionAccuracy:
        """The accuracies of the run's network, which must have prototypes, on the selection images."""
        network = self.explained_network
        return self.select(lambda features: network.head(network.latent(features)).log_probability)

    @torch.inference_mode()
    def select(self, log_probability: Callable[[Tensor], Tensor]) -> SelectionAccuracy:
        """The accuracies on the selection images of a function from features to log-probabilities [batch, nodes]."""
        return self._scored(self.selection_rows(log_probability))

    @torch.inference_mode()
    def selection_rows(self, rows_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows [selection images, …] that `rows_of` returns for batches of features, gathered from all
        processes."""
        count = len(self.splits.selection)
        own = np.arange(count)[self.processes.stripe(count)]
        pieces = [rows_of(features) for features in self.source.features("selection", slices(own, self.config.batch))]
        return self.processes.joined(torch.cat(pieces), count)

    @torch.inference_mode()
    def selected(self, log_probability: Iterable[Tensor]) -> SelectionAccuracy:
        """The accuracies on the selection images, from the log-probabilities [batch, nodes] of this process's
        stripe."""
        return self._scored(self.processes.joined(torch.cat([*log_probability]), len(self.splits.selection)))

    def _scored(self, log_probability: Tensor) -> SelectionAccuracy:
        selection = self.splits.selection
        return selection_accuracy(scores(log_probability.cpu().numpy(), selection.leaves, selection.taxonomy))

    def targets(self, numbers: NDArray[np.int64]) -> Tensor:
        """int64 [images]: the true labels of fit images, indices into `taxonomy.label_nodes`, on the run's device."""
        return torch.from_numpy(self.splits.fit.leaves[numbers]).to(self.device)

    def optimiser(
        self, groups: list[tuple[list[nn.Parameter], float]], weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        """The optimiser of the current stage over groups of (parameters, learning rate).

        It is made in the stage's first epoch, kept during projections, and restored from a checkpoint.
        """
        stage = self.step.stage
        if stage not in self.optimisers:
            self.optimisers[stage] = adam(groups, weight_decay)
            if stored := self._stored_optimisers.pop(stage, None):
                self.optimisers[stage].load_state_dict(stored)
        return self.optimisers[stage]

    def means(self, averages: Averages) -> dict[str, float]:
        """The means of an epoch over the images of all processes."""
        total = self.processes.total({**averages.sums, "count": float(averages.count)})
        return Averages(total, int(total.pop("count"))).means()

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def identity(self) -> str:
        """The configuration, head and data of the run, as JSON. A run resumes only from a checkpoint with the same."""
        # `workers` and `compile` depend on the machine, and the promise is made after the last step: they may change.
        config = self.config.model_dump(mode="json", exclude={"compile": True, "promise": True, "data": {"workers"}})
        return json.dumps(
            {
                "config": config,
                "linear": self.linear,
                "data": self.splits.fingerprint,
                **({} if self.splits.inner is None else {"inner": self.splits.inner.fingerprint}),
            },
            sort_keys=True,
        )

    def save(self) -> None:
        """Write the checkpoint. Only the first process writes; the others read it back, so that all processes continue
        from bit-identical state."""
        if not self.processes.first:
            self.processes.wait()
            self.resume()
            self.processes.wait()
            return
        save_whole(
            {
                "format": FORMAT,
                "identity": self.identity(),
                "state": state_content(self.state),
                "description": self.description.model_dump_json(),
                "network": self.network.state_dict(),
                "plain": None if self._plain is None else self._plain.linear.state_dict(),
                "optimisers": {stage: optimiser.state_dict() for stage, optimiser in self.optimisers.items()}
                | self._stored_optimisers,
                "scaler": self.scaler.state_dict(),
            },
            self.directory / CHECKPOINT,
        )
        self.processes.wait()
        self.processes.wait()

    def resume(self) -> None:
        """Restore the run from its checkpoint, if there is one.

        Raises InputError if the checkpoint belongs to another configuration or other data.
        """
        content = read_checkpoint(self.directory / CHECKPOINT, self.identity(), self.device)
        if content is None:
            return
        description = NetworkDescription.model_validate_json(content["description"])
        if description != self.description:
            self.replace_network(description, build_any(description).to(self.device).eval())
        self.network.load_state_dict(content["network"])
        if self._plain is not None:
            self._plain.linear.load_state_dict(content["plain"])
        self.state = read_state(content["state"])
        self.optimisers, self._stored_optimisers = {}, content["optimisers"]
        self.scaler.load_state_dict(content["scaler"])
        self._set_backbone_state()


def _learning(config: Config, images: int) -> Learning:
    """How the backbone learns, with `images` fit images per epoch."""
    epochs = config.finetune.epochs + (config.joint.epochs if config.joint.backbone_learning_rate > 0 else 0)
    return Learning(
        config.finetune.train_from,
        config.finetune.fresh,
        config.precision,
        config.compile,
        epochs * images,
        config.features,
    )


def selection_accuracy(scores_on_selection: Scores) -> SelectionAccuracy:
    """The accuracies by which stages choose weights, from the scores on the selection images."""
    accuracy = scores_on_selection.accuracy
    return SelectionAccuracy(selection_leaf=accuracy["leaf"], selection_level_1=accuracy["level_1"])
