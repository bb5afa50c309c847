"""Training the prototype autoencoder: pictures held in memory, and a checkpoint after every epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.errors import InputError
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder, code_size
from protoserve.networks.model_file import NetworkDescription, build_autoencoder, save_whole
from protoserve.scores import scores
from training.config import Config
from training.data.batches import epoch_batches, slices
from training.data.elastic import deform
from training.data.pictures import fitted
from training.data.splits import Splits
from training.features.feed import Part
from training.loop.checkpoints import CHECKPOINT, read_checkpoint
from training.loop.optimising import Averages, adam, set_learning_rate
from training.loop.trainer import selection_row
from training.progress import tracked
from training.stages.autoencoder_losses import Weights, autoencoder_losses

FORMAT = 1
# Pictures are classified and encoded in pieces of this many.
PIECE = 1000


@dataclass
class AutoencoderState:
    """What changes from epoch to epoch beside the network and its optimiser. The checkpoint holds all of it but what
    the end of the run finds: `facts`, which go into its metrics, and `kept`, for its global analysis."""

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PicturesInMemory:
    """All pictures of fit and selection, uint8 [images, H, W, 3] on the run's device; `still` is what calibration and
    novelty read other runs' features by."""

    network: PrototypeAutoencoder
    pictures: dict[Part, Tensor]

    @torch.inference_mode()
    def still(self, part: Part, numbers: NDArray[np.int64]) -> Tensor:
        """`network.features` of pictures as they are, undeformed."""
        pictures = self.pictures[part]
        return self.network.features(pictures[torch.from_numpy(numbers).to(pictures.device)])


class AutoencoderTrainer:
    """One run of an autoencoder in one folder. `run` goes through the remaining epochs, each of which ends with a
    checkpoint, written whole; every epoch seeds its own random numbers, so a resumed run ends bit for bit as one left
    alone."""

    def __init__(
        self, config: Config, splits: Splits, directory: Path, *, device: torch.device, console: Console
    ) -> None:
        self.config, self.splits, self.directory = config, splits, directory
        self.device, self.console = device, console
        self.state = AutoencoderState()
        torch.manual_seed(config.seed)
        self.description = describe_autoencoder(config, splits.fit)
        self.network = build_autoencoder(self.description).to(device).eval()
        rate = config.autoencoder.learning_rate
        self.optimiser = adam([(list(self.network.parameters()), rate)])
        self.fit = in_memory(splits.fit, config.image, console).to(device)
        self.selection = in_memory(splits.selection, config.image, console).to(device)
        start_from_pictures(self.network, self.fit, splits.fit.leaves, config.seed)

    # What the end of a run shares with other runs (calibration, novelty, global analysis) goes by these.

    @property
    def feed(self) -> PicturesInMemory:
        """The pictures of fit and selection."""
        return PicturesInMemory(self.network, {"fit": self.fit, "selection": self.selection})

    @torch.inference_mode()
    def selection_rows(self, found: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows [selection images, …] that `found` gives for batches of the network's features."""
        numbers = np.arange(len(self.splits.selection))
        return torch.cat([found(self.feed.still("selection", piece)) for piece in slices(numbers, self.config.batch)])

    @property
    def prototype_network(self) -> PrototypeAutoencoder:
        """The network."""
        return self.network

    @torch.inference_mode()
    def latents(self, numbers: NDArray[np.int64]) -> Iterator[Tensor]:
        """The codes [batch, D, 1, 1] of fit pictures, a batch at a time."""
        for piece in slices(numbers, self.config.batch):
            yield self.network.latent(self.feed.still("fit", piece))

    def run(self) -> None:
        """Go through all remaining epochs."""
        epochs = self.config.autoencoder.epochs
        while self.state.epoch < epochs:
            began = time.perf_counter()
            epoch = self.state.epoch
            row = {**self._epoch(epoch), **self._select()}
            self.state.history.append({"step": epoch, "stage": "autoencoder", "epoch": epoch + 1, **row})
            figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
            self.console.print(f"[{epoch + 1:>3}/{epochs}] {figures}", markup=False, soft_wrap=True)
            self.state.epoch += 1
            self.state.seconds += time.perf_counter() - began
            self.save()

    def _epoch(self, epoch: int) -> dict[str, float]:
        """One epoch over the fit pictures, each deformed anew; returns the means of the losses."""
        setting, network = self.config.autoencoder, self.network
        weights = Weights(
            setting.cross_entropy, setting.reconstruction, setting.prototype_near_code, setting.code_near_prototype
        )
        generator = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + epoch)
        leaves = self.splits.fit.leaves
        averages = Averages({})
        network.train()
        with tracked(self.console, f"epoch {epoch + 1} of {setting.epochs}", len(leaves)) as advance:
            for numbers, share in epoch_batches(leaves, self.config, epoch):
                set_learning_rate(self.optimiser, (epoch + share) / setting.epochs, cosine=True)
                planes = network.planes(self.fit[torch.from_numpy(numbers).to(self.device)])
                if setting.elastic.alpha > 0:
                    planes = deform(
                        planes, sigma=setting.elastic.sigma, alpha=setting.elastic.alpha, generator=generator
                    )
                found = network.reconstruct(planes)
                target = torch.from_numpy(leaves[numbers]).to(self.device)
                # One group holds all leaves, in the order of the taxonomy.
                logits = found.output.group_logits[:, 0]
                parts = autoencoder_losses(logits, target, found.output.distance, planes, found.drawn, weights)
                if not torch.isfinite(parts.total):
                    raise InputError(
                        f"the loss is {float(parts.total)} in epoch {epoch + 1}; lower autoencoder.learning_rate"
                    )
                self.optimiser.zero_grad(set_to_none=True)
                parts.total.backward()
                self.optimiser.step()
                averages.add({name: float(part.detach()) for name, part in parts._asdict().items()}, len(numbers))
                advance(len(numbers))
        network.eval()
        return averages.means()

    @torch.inference_mode()
    def _select(self) -> dict[str, float]:
        selection = self.splits.selection
        found = [self.network(piece).log_probability.cpu().numpy() for piece in pieces(self.selection)]
        return selection_row(scores(np.concatenate(found), selection.leaves, selection.taxonomy))

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def identity(self) -> str:
        """What a checkpoint must share with a run to go on with it."""
        return json.dumps(
            {"config": self.config.model_dump(mode="json"), "data": self.splits.fingerprint}, sort_keys=True
        )

    def save(self) -> None:
        """Write the checkpoint, whole."""
        save_whole(
            {
                "format": FORMAT,
                "identity": self.identity(),
                "epoch": self.state.epoch,
                "seconds": self.state.seconds,
                "history": json.dumps(self.state.history),
                "network": self.network.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            self.directory / CHECKPOINT,
        )

    def resume(self) -> None:
        """Take up the run's checkpoint; without one, start from the beginning.

        Raises InputError when the checkpoint belongs to another configuration or other data.
        """
        content = read_checkpoint(self.directory / CHECKPOINT, FORMAT, self.identity(), self.device)
        if content is None:
            return
        self.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.state = AutoencoderState(content["epoch"], json.loads(content["history"]), content["seconds"])


def describe_autoencoder(config: Config, dataset: Dataset) -> NetworkDescription:
    """The autoencoder that a configuration asks for on a data set's taxonomy.

    The leaves get the prototypes in turn to start from; which leaf each speaks for is learned.
    """
    setting, rule, taxonomy = config.autoencoder, config.image, dataset.taxonomy
    return NetworkDescription(
        kind="autoencoder",
        taxonomy=taxonomy.to_dict(),
        input=rule,
        dimensions=code_size(setting.channels, rule.height, rule.width),
        similarity="negative-distance",
        epsilon=0.0,
        prototype_child=sorted(taxonomy.leaves[number % len(taxonomy.leaves)] for number in range(setting.prototypes)),
        channels=list(setting.channels),
        grey=setting.grey,
    )


def in_memory(dataset: Dataset, rule: InputRule, console: Console) -> Tensor:
    """All pictures of a data set at model size, uint8 [images, height, width, 3]; grey ones as a view of one plane."""
    pixels = dataset.pixels
    if pixels is not None and pixels.shape[1:] == (rule.height, rule.width):
        return torch.from_numpy(pixels)[..., None].expand(-1, -1, -1, 3)
    array = np.empty((len(dataset), rule.height, rule.width, 3), dtype=np.uint8)

    def read(number: int) -> None:
        array[number] = fitted(dataset, number, rule).array

    with tracked(console, "reading pictures", len(dataset)) as advance, ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(len(dataset))):
            advance(1)
    return torch.from_numpy(array)


def pieces(pictures: Tensor) -> Iterator[Tensor]:
    """Consecutive pieces of pictures [images, …]."""
    for start in range(0, len(pictures), PIECE):
        yield pictures[start : start + PIECE]


@torch.no_grad()
def start_from_pictures(network: PrototypeAutoencoder, pictures: Tensor, leaves: NDArray[np.int64], seed: int) -> None:
    """Make every prototype the code of a random picture of the leaf that it starts with.

    `pictures` uint8 [images, H, W, 3] with their `leaves` int64 [images]. Random prototypes, as published, start far
    from every code, and classification waits until they come near.
    """
    head = network.head
    generator = np.random.default_rng((seed, 0))
    for number, node in enumerate(head.prototype_child.tolist()):
        drawn = int(generator.choice(np.flatnonzero(leaves == int(head.node_member[node]))))
        head.prototypes[number] = codes_of(network, pictures[drawn : drawn + 1])[0]


@torch.inference_mode()
def codes_of(network: PrototypeAutoencoder, pictures: Tensor) -> Tensor:
    """The codes [images, D] of pictures uint8 [images, H, W, 3]."""
    return torch.cat([network.latent(network.features(piece)).flatten(1) for piece in pieces(pictures)])


def nearest_pictures(network: PrototypeAutoencoder, codes: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each prototype the number of the nearest of `codes` [images, D], and their squared distance [P], computed in
    double precision from the difference."""
    difference = codes.double()[:, None] - network.head.prototypes.detach().double()
    nearest = (difference * difference).sum(2).min(dim=0)
    return nearest.indices.cpu().numpy(), nearest.values.cpu().numpy()
