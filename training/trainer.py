"""A run: the state that the steps of `training.stages` change, its checkpoints, and going on after a kill."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from protoserve.dataset import Dataset
from protoserve.errors import InputError
from protoserve.metrics import scores
from protoserve.networks.checkpoint import build, save_whole
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from training.building import check_picture_size, describe, learning_parts
from training.config import Config
from training.features import Feed, epoch_order, fit_reduction, fresh_view
from training.initialise import start_from_data
from training.losses import LossTables, loss_tables, losses
from training.pictures import MIRRORED, PLAIN
from training.progress import tracked
from training.projection import Projection, find_nearest
from training.scoring import score_network
from training.stages import (
    Averages,
    Stage,
    Step,
    adam,
    epoch_batches,
    last_layer_epoch,
    plan,
    set_learning_rate,
    similarities_of,
)

CHECKPOINT = "checkpoint.pt"
FORMAT = 1
# Tens of thousands of cells: more change the principal components no further.
REDUCTION_IMAGES = 600


@dataclass(frozen=True)
class Splits:
    """`fit` is learned from; `selection` (held out of train, and val where there is one) chooses; `validation` and
    `test` are scored once, at the end."""

    fit: Dataset
    selection: Dataset
    validation: Dataset
    test: Dataset | None
    fingerprint: str


@dataclass
class State:
    """What changes from step to step; all of it is in the checkpoint."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    projection: Projection | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Trainer:
    """One run in one folder. `run` goes through the remaining steps; each ends with a checkpoint, written whole."""

    def __init__(
        self,
        config: Config,
        splits: Splits,
        directory: Path,
        *,
        linear: bool,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config, self.splits, self.directory = config, splits, directory
        self.linear, self.device, self.console = linear, device, console
        self.steps = plan(config, linear)
        self.state = State()
        torch.manual_seed(config.seed)
        self.description = describe(config, splits.fit, linear)
        self.network = build(self.description, config.model.weights).to(device).eval()
        check_picture_size(self.network.backbone, config, device)
        # Plain fine-tuning trains a linear head on the same backbone, whatever the run's own head is.
        self.plain = self.network if isinstance(self.network, LinearNetwork) else self._plain_head()
        self.tables: LossTables | None = None
        if isinstance(self.network, PrototypeNetwork):
            self.tables = loss_tables(self.network.head)
        self.optimisers: dict[str, torch.optim.Adam] = {}
        self._stored_optimisers: dict[str, Any] = {}
        self._best_weight: Tensor | None = None
        frozen = linear or config.joint.backbone_learning_rate == 0
        self.feed = Feed(
            self.network, splits.fit, splits.selection, config, directory / "cache", frozen, device, console
        )

    # ---- going through the steps -----------------------------------------------------------------------------

    def run(self) -> None:
        """Go through all remaining steps but the last, `finish`, which the caller does."""
        while self.steps[self.state.step].stage != "finish":
            began = time.perf_counter()
            step = self.steps[self.state.step]
            torch.manual_seed(self.config.seed * 1_000_003 + self.state.step)
            row = self._do(step)
            self.state.history.append({"step": self.state.step, "stage": step.stage, "epoch": step.epoch + 1, **row})
            self._tell(step, row)
            if step.epoch + 1 == step.epochs:
                self.optimisers.pop(step.stage, None)
            self.state.step += 1
            self.state.seconds += time.perf_counter() - began
            self.save()

    def _do(self, step: Step) -> dict[str, float]:
        stage: Stage = step.stage
        if stage == "finetune":
            return self._finetune(step)
        if stage == "linear":
            return self._linear(step)
        network = self._prototypes()
        if stage == "reduce":
            return self._reduce(network)
        if stage == "initialise":
            return self._initialise(network)
        if stage in ("warm", "joint"):
            return self._train(network, step)
        if stage == "project":
            return self._project(network)
        return self._last_layers(network, step)

    def _tell(self, step: Step, row: dict[str, float]) -> None:
        place = f"{step.stage} {step.epoch + 1}/{step.epochs}" if step.epochs > 1 else step.stage
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        self.console.print(
            f"[{self.state.step + 1:>3}/{len(self.steps)}] {place:<18} {figures}", markup=False, soft_wrap=True
        )

    # ---- plain classification --------------------------------------------------------------------------------

    def _plain_head(self) -> LinearNetwork:
        taxonomy = self.splits.fit.taxonomy
        return LinearNetwork(self.network.backbone, taxonomy, self.config.model.dropout).to(self.device).eval()

    def _finetune(self, step: Step) -> dict[str, float]:
        """One epoch of backbone and linear head on fresh random views, cross-entropy over leaves."""
        setting = self.config.finetune
        learning = learning_parts(self.plain.backbone.body, setting.train_from)
        parameters = [parameter for part in learning for parameter in part.parameters(recurse=False)]
        optimiser = self._optimiser(
            step,
            [
                (parameters, setting.backbone_learning_rate),
                ([*self.plain.linear.parameters()], setting.learning_rate),
            ],
        )
        for parameter in self.plain.backbone.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for part in learning:
            part.train()
        self.plain.dropout.train()
        averages = Averages({})
        leaves = self.splits.fit.leaves
        order = np.concatenate([numbers for numbers, _ in epoch_batches(leaves, self.config, self.state.step)])
        view = fresh_view(self.state.step)
        with tracked(self.console, f"fine-tuning, epoch {step.epoch + 1} of {step.epochs}", len(leaves)) as advance:
            stream = self.feed.pictures("fit", order, view)
            for numbers, pictures in stream:
                progress = (step.epoch + averages.count / len(order)) / step.epochs
                set_learning_rate(optimiser, progress, cosine=True)
                maps = self.plain.backbone(self.plain.normalise(pictures.to(self.device)))
                logits = self.plain.leaf_logits(maps.mean((2, 3)))
                target = torch.from_numpy(leaves[numbers]).to(self.device)
                # A last batch of one picture has no batch statistics to learn from.
                if len(numbers) == 1:
                    continue
                loss = nn.functional.cross_entropy(logits, target)
                self._minimise(loss, optimiser)
                averages.add({"loss": float(loss.detach())}, len(numbers))
                advance(len(numbers))
        self.plain.eval()
        return {**averages.means(), **self._select_plain()}

    def _select_plain(self) -> dict[str, float]:
        """The plain network on the selection images, without a cache since its backbone changes."""
        found = score_network(self.plain, self.splits.selection, self.config.image, self.device, self.console)
        return _selection(found)

    def _linear(self, step: Step) -> dict[str, float]:
        """One epoch of the linear head on cached features of a backbone that stands still."""
        optimiser = self._optimiser(step, [([*self.plain.linear.parameters()], self.config.linear.learning_rate)])
        self.plain.dropout.train()
        leaves = self.splits.fit.leaves
        averages = Averages({})
        for numbers, share in epoch_batches(leaves, self.config, self.state.step):
            set_learning_rate(optimiser, (step.epoch + share) / step.epochs, cosine=True)
            logits = self.plain.leaf_logits(self.feed.varied(numbers, self.state.step))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(leaves[numbers]).to(self.device))
            self._minimise(loss, optimiser)
            averages.add({"loss": float(loss.detach())}, len(numbers))
        self.plain.eval()
        return {**averages.means(), **self._select(self.plain.log_probability)}

    # ---- prototypes ------------------------------------------------------------------------------------------

    def _prototypes(self) -> PrototypeNetwork:
        assert isinstance(self.network, PrototypeNetwork)
        return self.network

    def _reduce(self, network: PrototypeNetwork) -> dict[str, float]:
        chosen = epoch_order(len(self.splits.fit), (self.config.seed, self.state.step))[:REDUCTION_IMAGES]
        with tracked(self.console, "principal components", len(chosen)) as advance:
            fit_reduction(network, self.feed.pictures("fit", np.sort(chosen), 0), self.device, advance)
        return {}

    def _initialise(self, network: PrototypeNetwork) -> dict[str, float]:
        with tracked(self.console, "prototypes from data", len(network.head.prototype_child)) as advance:
            start_from_data(network.head, self._latent, self.splits.fit.leaves, self.config.seed, advance)
        with torch.no_grad():
            network.head.centre.copy_(network.head.prototypes.mean(0))
        return self._select_prototypes(network)

    def _train(self, network: PrototypeNetwork, step: Step) -> dict[str, float]:
        """One epoch of add-on layers and prototypes (and the backbone), the last layers fixed."""
        setting = self.config.warm if step.stage == "warm" else self.config.joint
        rate = self.config.joint.backbone_learning_rate if step.stage == "joint" else 0.0
        groups = [([*network.add_on.parameters(), network.head.prototypes], setting.learning_rate)]
        if rate > 0:
            groups.append((list(network.backbone.parameters()), rate))
        optimiser = self._optimiser(step, groups)
        for parameter in network.backbone.parameters():
            parameter.requires_grad_(rate > 0)
        network.head.weight.requires_grad_(False)
        network.add_on.train()
        network.head.train()
        assert self.tables is not None
        leaves = self.splits.fit.leaves
        averages = Averages({})
        cosine = step.stage == "joint" and self.config.joint.cosine
        label = f"{step.stage}, epoch {step.epoch + 1} of {step.epochs}"
        with tracked(self.console, label, len(leaves)) as advance:
            for numbers, share in epoch_batches(leaves, self.config, self.state.step):
                set_learning_rate(optimiser, (step.epoch + share) / step.epochs, cosine)
                output = network.head(network.latent(self.feed.varied(numbers, self.state.step, learning=rate > 0)))
                target = torch.from_numpy(leaves[numbers]).to(self.device)
                parts = losses(network.head, output, target, self.tables, self.config.loss)
                self._minimise(parts.total, optimiser)
                averages.add({name: float(part.detach()) for name, part in parts._asdict().items()}, len(numbers))
                advance(len(numbers))
        network.eval()
        return {**averages.means(), **self._select_prototypes(network)}

    def _project(self, network: PrototypeNetwork) -> dict[str, float]:
        before = self._select_prototypes(network)
        fit = self.splits.fit
        numbers = np.arange(len(fit))
        with tracked(self.console, "projection", len(fit)) as advance:

            def latents() -> Any:
                for start in range(0, len(fit), self.config.batch):
                    part = numbers[start : start + self.config.batch]
                    yield torch.from_numpy(part), torch.from_numpy(fit.leaves[part]), self._latent(part)
                    advance(len(part))

            found = find_nearest(network.head, latents())
        with torch.no_grad():
            network.head.prototypes.copy_(found.vector.to(self.device))
        self.state.projection = found
        after = self._select_prototypes(network)
        self.state.facts["projection"] = {"before": before, "after": after}
        distinct = len(
            set(
                zip(
                    network.head.prototype_child.tolist(),
                    found.image.tolist(),
                    found.cell.tolist(),
                    strict=True,
                )
            )
        )
        return {
            "mean_distance": float(found.distance.mean()),
            "distinct": distinct,
            "before": before["selection_leaf"],
            **after,
        }

    def _last_layers(self, network: PrototypeNetwork, step: Step) -> dict[str, float]:
        """One epoch of the last layers on fixed distances; after the last one, the weights of the epoch that classified
        the selection images best are taken, which may be those before the first."""
        head = network.head
        assert self.tables is not None
        if step.epoch == 0:
            before = self._select_prototypes(network)
            self.state.facts["last_layers"] = {"before": before, "after": before, "epoch": 0}
            self._best_weight = head.weight.detach().clone()
        optimiser = self._optimiser(step, [([head.weight], self.config.last_layers.learning_rate)])
        head.weight.requires_grad_(True)
        distance = self._fit_distances(network)
        leaves = torch.from_numpy(self.splits.fit.leaves).to(self.device)
        row = last_layer_epoch(head, distance, leaves, self.tables, optimiser, self.config, self.state.step)
        head.weight.requires_grad_(False)
        selected, facts = self._select_prototypes(network), self.state.facts["last_layers"]
        if _merit(selected) > _merit(facts["after"]):
            facts |= {"after": selected, "epoch": step.epoch + 1}
            self._best_weight = head.weight.detach().clone()
        if step.epoch + 1 == step.epochs:
            assert self._best_weight is not None
            with torch.no_grad():
                head.weight.copy_(self._best_weight)
        return {**row, **selected}

    # ---- latent maps -----------------------------------------------------------------------------------------

    def _fit_distances(self, network: PrototypeNetwork) -> Tensor:
        """distance [images, P] for the last layers, on mirrored pictures where there are some: there no prototype meets
        the very cell it was cut from, a match that new pictures never have."""
        count = len(self.splits.fit)
        pieces = (
            np.arange(start, min(count, start + self.config.batch)) for start in range(0, count, self.config.batch)
        )
        mirrored = self.config.data.mirror and self.config.data.views > 1
        view = MIRRORED if mirrored else PLAIN
        return similarities_of(network.head, (self._latent(piece, view) for piece in pieces))[0].clone()

    @torch.inference_mode()
    def _latent(self, numbers: NDArray[np.int64], view: int = PLAIN) -> Tensor:
        """Latent maps of fit images in one view, computed in pieces of a batch."""
        network = self._prototypes()
        pieces = [numbers[start : start + self.config.batch] for start in range(0, len(numbers), self.config.batch)]
        return torch.cat([network.latent(self.feed.still("fit", piece, view)) for piece in pieces])

    # ---- selection -------------------------------------------------------------------------------------------

    def _select_prototypes(self, network: PrototypeNetwork) -> dict[str, float]:
        return self._select(lambda features: network.head(network.latent(features)).log_probability)

    @torch.inference_mode()
    def _select(self, log_probability: Any) -> dict[str, float]:
        selection = self.splits.selection
        found = []
        for start in range(0, len(selection), self.config.batch):
            numbers = np.arange(start, min(len(selection), start + self.config.batch))
            found.append(log_probability(self.feed.still("selection", numbers)).cpu().numpy())
        return _selection(scores(np.concatenate(found), selection.leaves, selection.taxonomy))

    def _optimiser(self, step: Step, groups: list[tuple[list[nn.Parameter], float]]) -> torch.optim.Adam:
        """The stage's optimiser: made at its first epoch, kept through projections, taken up after a kill."""
        if step.stage not in self.optimisers:
            self.optimisers[step.stage] = adam(groups)
            if stored := self._stored_optimisers.pop(step.stage, None):
                self.optimisers[step.stage].load_state_dict(stored)
        return self.optimisers[step.stage]

    def _minimise(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {float(loss)} in step {self.state.step + 1} ({self.steps[self.state.step].stage}); "
                "lower the learning rate or the weight of separation in the configuration"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def identity(self) -> str:
        """What a checkpoint must share with a run to go on with it."""
        return json.dumps(
            {
                "config": self.config.model_dump(mode="json"),
                "linear": self.linear,
                "data": self.splits.fingerprint,
            },
            sort_keys=True,
        )

    def save(self) -> None:
        """Write the checkpoint, whole."""
        projection = self.state.projection
        save_whole(
            {
                "format": FORMAT,
                "identity": self.identity(),
                "step": self.state.step,
                "seconds": self.state.seconds,
                "history": json.dumps(self.state.history),
                "facts": json.dumps(self.state.facts),
                "projection": None if projection is None else dict(projection._asdict()),
                "network": self.network.state_dict(),
                "plain": self.plain.linear.state_dict(),
                "optimisers": {stage: optimiser.state_dict() for stage, optimiser in self.optimisers.items()}
                | self._stored_optimisers,
                "best_weight": self._best_weight,
            },
            self.directory / CHECKPOINT,
        )

    def resume(self) -> None:
        """Take up the run's checkpoint; without one, start from the beginning.

        Raises InputError when the checkpoint belongs to another configuration or other data.
        """
        file = self.directory / CHECKPOINT
        if not file.is_file():
            return
        try:
            content = torch.load(file, map_location=self.device, weights_only=True)
        except Exception as error:
            # torch.load raises whatever the file's bytes provoke, and advises to run code from it.
            raise InputError(f"{file}: can't read the checkpoint; remove it to start again") from error
        stored_format = content.get("format") if isinstance(content, dict) else None
        if stored_format != FORMAT:
            raise InputError(f"{file}: format {stored_format!r}, this version writes {FORMAT}; start a new run")
        if content["identity"] != self.identity():
            stored, given = json.loads(content["identity"]), json.loads(self.identity())
            changed = _first_difference(stored, given)
            raise InputError(
                f"{file}: the run was started with another {changed}; resume with the same configuration and data, "
                "or give another --run"
            )
        self.network.load_state_dict(content["network"])
        self.plain.linear.load_state_dict(content["plain"])
        projection = content["projection"]
        self.state = State(
            step=content["step"],
            history=json.loads(content["history"]),
            projection=None if projection is None else Projection(**projection),
            facts=json.loads(content["facts"]),
            seconds=content["seconds"],
        )
        self._best_weight = content["best_weight"]
        self._stored_optimisers = content["optimisers"]


def _selection(found: dict[str, Any]) -> dict[str, float]:
    accuracy = found["accuracy"]
    return {"selection_leaf": accuracy["leaf"], "selection_level_1": accuracy["level_1"]}


def _merit(selected: dict[str, float]) -> tuple[float, float]:
    return selected["selection_leaf"], selected["selection_level_1"]


def _first_difference(stored: Any, given: Any, place: str = "") -> str:
    """The dotted name of the first value in which two nested mappings differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in given:
            if stored.get(key) != given[key]:
                return _first_difference(stored.get(key), given[key], f"{place}.{key}" if place else key)
    return f"{place} ({stored!r}, now {given!r})"
