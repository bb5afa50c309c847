"""What an autoencoder's decoder draws: the pictures of its prototypes, its reconstructions, and how good they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.errors import InputError
from protoserve.files import write_bytes
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import NetworkDescription, PrototypeSource, build_autoencoder
from protoserve.run.folder import Run
from protoserve.run.records import AutoencoderRecord, Metrics
from training.config import Config
from training.data.splits import Splits
from training.outcome.charts import write_figure
from training.outcome.finishing import write_config, write_outcome
from training.outcome.patches import write_patches
from training.prototypes.nearest_patches import NearestPatches
from training.stages.analysis import analyse
from training.stages.autoencoder import AutoencoderTrainer, codes_of, nearest_pictures, pieces
from training.stages.calibration import calibrate
from training.stages.novelty_thresholds import novelty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL, GAP, CAPTION = 224, 8, 24
RECONSTRUCTIONS = 12


def train_autoencoder(
    config: Config, splits: Splits, run: Path, *, linear: bool, resume: bool, device: torch.device, console: Console
) -> Metrics:
    """Train an autoencoder in an existing folder, or resume it, and return its metrics.

    Raises InputError for `linear`: there is no backbone to put a plain head on.
    """
    if linear:
        raise InputError("--head linear compares on a backbone, and an autoencoder has none; leave the option out")
    trainer = AutoencoderTrainer(config, splits, run, device=device, console=console)
    if resume:
        trainer.resume()
    write_config(config, run)
    trainer.run()
    return finish_autoencoder(trainer)


def finish_autoencoder(trainer: AutoencoderTrainer) -> Metrics:
    """Write the decoded pictures, then all that `write_outcome` writes, and return the metrics."""
    run = Run(trainer.directory)
    codes = codes_of(trainer.network, trainer.fit)
    trainer.description, trainer.network = for_people(trainer.description, trainer.network, codes)
    analyse(trainer)
    if trainer.config.calibration.enabled:
        calibrate(trainer)
    if trainer.config.novelty.enabled:
        novelty(trainer)
    sources, record = write_decoded(
        run, trainer.network, trainer.fit, trainer.selection, trainer.splits.fit, trainer.config.image, trainer.console
    )
    kept = trainer.state.kept
    write_patches(
        run,
        trainer.network.head,
        trainer.splits.fit,
        NearestPatches(*(kept[f"patch_{name}"].cpu().numpy() for name in NearestPatches._fields)),
        sources,
        rule=trainer.config.image,
        smoothing=trainer.config.model.smoothing,
        purity_of=trainer.config.prune.nearest,
        console=trainer.console,
    )
    trainer.state.facts["autoencoder"] = record.model_dump()
    return write_outcome(trainer, run, sources)


def write_decoded(
    run: Run,
    network: PrototypeAutoencoder,
    fit: Tensor,
    selection: Tensor,
    dataset: Dataset,
    rule: InputRule,
    console: Console,
) -> tuple[list[PrototypeSource], AutoencoderRecord]:
    """Write what the decoder draws: `prototypes/NNNN.webp`, `prototypes.png` and `reconstructions.png`. Returns the
    nearest training image of every prototype, and how well the decoder draws.

    `fit` and `selection` are pictures uint8 [images, H, W, 3]; those of `fit` are the images of `dataset`.
    """
    codes = codes_of(network, fit)
    images, distances = nearest_pictures(network, codes)
    sources = nearest_sources(dataset, rule, images, distances)
    drawn = _drawn(network, network.head.prototypes)
    for prototype, (decoded, nearest) in enumerate(zip(drawn, fit[torch.from_numpy(images)], strict=True)):
        run.picture(prototype).parent.mkdir(exist_ok=True)
        picture = decoded_beside_nearest(decoded, nearest.cpu().numpy())
        write_bytes(run.picture(prototype), _encoded(picture, "WEBP", quality=90, method=4))
    write_figure(run.directory / "prototypes.png", lambda: prototypes_figure(network.head, drawn), console, dpi=120)
    write_bytes(run.directory / "reconstructions.png", reconstructions_picture(network, selection))
    near = closeness(network, codes, codes_of(network, selection))
    record = AutoencoderRecord(
        reconstruction_error=reconstruction_error(network, selection),
        prototype_to_code=near.prototype_to_code,
        code_to_prototype=near.code_to_prototype,
        drawn_prototype_to_picture=drawn_to_picture(network, fit),
    )
    return sources, record


@torch.no_grad()
def for_people(
    description: NetworkDescription, network: PrototypeAutoencoder, codes: Tensor
) -> tuple[NetworkDescription, PrototypeAutoencoder]:
    """The same network in a form for people: each prototype belongs to the leaf that it speaks for most,
    prototypes are ordered by leaf, and similarities are relative to the mean over `codes` [images, D].

    No probability changes (see `PrototypeHead.recentre_distances`).
    """
    head = network.head
    head.recentre_distances(_mean_distance(codes, head.prototypes))
    member = head.effective_weight()[0].argmax(0)
    child = head.member_node[0][member].cpu().numpy()
    order = np.argsort(child, kind="stable")
    ordered = description.model_copy(update={"prototype_child": [int(node) for node in child[order]]})
    state = network.state_dict()
    turned = torch.from_numpy(order).to(head.weight.device)
    for name, dimension in (("prototypes", 0), ("reference", 0), ("weight", 2)):
        state[f"head.{name}"] = state[f"head.{name}"].index_select(dimension, turned)
    result = build_autoencoder(ordered)
    result.load_state_dict(state)
    return ordered, result.to(head.weight.device).eval()


def _mean_distance(codes: Tensor, prototypes: Tensor) -> Tensor:
    """[P] the mean squared distance of all codes to each prototype: ‖mean − p‖² and the codes' variance."""
    exact = codes.double()
    mean = exact.mean(0)
    variance = (exact - mean).square().sum(1).mean()
    return (mean - prototypes.detach().double()).square().sum(1) + variance


def nearest_sources(
    dataset: Dataset, rule: InputRule, images: NDArray[np.int64], distances: NDArray[np.float64]
) -> list[PrototypeSource]:
    """The nearest training image of every prototype, from the indices of `images` in `dataset` and their squared
    `distances` [P]; each is one cell, for an autoencoder's code covers the whole picture."""
    return [
        PrototypeSource(
            image=dataset.images[image],
            cell=0,
            rows=1,
            columns=1,
            box=dataset.geometry(image, rule).cell_box(0, 1, 1),
            distance=distance,
        )
        for image, distance in zip(images.tolist(), distances.tolist(), strict=True)
    ]


# ---- pictures ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _drawn(network: PrototypeAutoencoder, codes: Tensor) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3] what the decoder draws of codes [N, D]."""
    planes = network.decode(codes).movedim(1, 3)
    return (planes * 255.0).round().byte().expand(-1, -1, -1, 3).cpu().numpy()


def decoded_beside_nearest(decoded: NDArray[np.uint8], nearest: NDArray[np.uint8]) -> Image.Image:
    """A prototype's picture: on the left what the decoder draws of it, on the right its nearest training image, both
    uint8 [H, W, 3]; enlarged without smoothing, so that pixels stay pixels."""
    height = PANEL * decoded.shape[0] // decoded.shape[1]
    sheet = Image.new("RGB", (2 * PANEL + GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    panels = ((decoded, "the prototype, decoded"), (nearest, "nearest training image"))
    for column, (array, caption) in enumerate(panels):
        left = column * (PANEL + GAP)
        sheet.paste(Image.fromarray(array).resize((PANEL, height), Image.Resampling.NEAREST), (left, 0))
        draw.text((left + PANEL // 2, height + CAPTION // 2), caption, "black", ImageFont.load_default(15), anchor="mm")
    return sheet


def prototypes_figure(head: PrototypeHead, drawn: NDArray[np.uint8]) -> Figure:
    """All decoded prototypes uint8 [P, H, W, 3], each below its leaf and its weight for that leaf."""
    from matplotlib.figure import Figure

    weight = head.effective_weight()[0].detach().cpu().numpy()
    columns = min(10, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.7 * rows), layout="constrained")
    for prototype, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if prototype < len(drawn):
            member = int(weight[:, prototype].argmax())
            label = head.taxonomy.nodes[int(head.member_node[0, member])][-1]
            axes.imshow(drawn[prototype], interpolation="nearest")
            axes.set_title(f"{label}\n{weight[member, prototype]:+.2f}", fontsize=9)
    return figure


@torch.inference_mode()
def reconstructions_picture(network: PrototypeAutoencoder, pictures: Tensor) -> bytes:
    """A PNG of some of the pictures uint8 [N, H, W, 3] (above) and of their reconstructions (below)."""
    count = min(RECONSTRUCTIONS, len(pictures))
    chosen = pictures[torch.linspace(0, len(pictures) - 1, count).long()]
    shown = network.planes(chosen).movedim(1, 3)
    originals = (shown * 255.0).round().byte().expand(-1, -1, -1, 3).cpu().numpy()
    drawn = _drawn(network, codes_of(network, chosen))
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in (list(originals), list(drawn))]))
    scale = max(1, 1200 // sheet.width)
    enlarged = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    return _encoded(enlarged, "PNG")


@torch.inference_mode()
def reconstruction_error(network: PrototypeAutoencoder, pictures: Tensor) -> float:
    """The squared difference between pictures uint8 [N, H, W, 3] and their reconstructions, summed over a picture's
    values in [0, 1], mean over pictures."""
    total = 0.0
    for piece in pieces(pictures):
        planes = network.planes(piece)
        drawn = network.decode(network.encoder(planes).flatten(1))
        total += float((drawn - planes).square().sum(dtype=torch.float64))
    return total / len(pictures)


class Closeness(NamedTuple):
    """How near prototypes and codes are to each other, see `closeness`."""

    prototype_to_code: float
    code_to_prototype: float


def closeness(network: PrototypeAutoencoder, fit: Tensor, selection: Tensor) -> Closeness:
    """How near prototypes and codes [images, D] are to each other, as shares of the mean squared distance between two
    fit codes, so that spaces of different scale compare: the mean over prototypes of the distance to the nearest fit
    code (R1), and the mean over selection codes of the distance to the nearest prototype (R2)."""
    between = 2.0 * fit.double().var(0, correction=0).sum().item()
    _, to_code = nearest_pictures(network, fit)
    prototypes = network.head.prototypes.detach().double()
    difference = selection.double()[:, None] - prototypes
    to_prototype = difference.square().sum(2).min(dim=1).values
    return Closeness(float(to_code.mean()) / between, to_prototype.mean().item() / between)


@torch.inference_mode()
def drawn_to_picture(network: PrototypeAutoencoder, pictures: Tensor) -> float:
    """The squared difference, summed over a picture's values in [0, 1], between a decoded prototype and the picture
    uint8 [N, H, W, 3] most like it; mean over prototypes. Small where decoded prototypes look like real pictures."""
    drawn = network.decode(network.head.prototypes).flatten(1).double()
    nearest = torch.full((len(drawn),), torch.inf, dtype=torch.float64, device=drawn.device)
    for piece in pieces(pictures):
        real = network.planes(piece).flatten(1).double()
        squared = drawn.square().sum(1) - 2.0 * real @ drawn.t() + real.square().sum(1, keepdim=True)
        nearest = torch.minimum(nearest, squared.min(dim=0).values)
    return float(nearest.mean())


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
