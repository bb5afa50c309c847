"""The end of an autoencoder's run: the same folder as of every other run, and pictures of what the decoder draws."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.errors import InputError
from protoserve.files import write_bytes, write_text
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import NetworkDescription, PrototypeSource, build_autoencoder, save_network
from protoserve.run.folder import Run
from training.config import Config
from training.data.splits import Splits
from training.outcome.finishing import (
    final_metrics,
    parity_samples,
    plot_curves,
    provenance,
    write_config,
    write_history,
)
from training.outcome.patches import write_patches
from training.stages.analysis import analyse
from training.stages.autoencoder import AutoencoderTrainer, codes_of, nearest_pictures, pieces
from training.stages.calibration import calibrate
from training.stages.novelty_thresholds import novelty

PANEL, GAP, CAPTION = 224, 8, 24
RECONSTRUCTIONS = 12


def train_autoencoder(
    config: Config, splits: Splits, run: Path, *, linear: bool, resume: bool, device: torch.device, console: Console
) -> dict[str, Any]:
    """Train an autoencoder in an existing folder, or go on with it, and return its metrics.

    Raises InputError for `linear`: there is no backbone to put a plain head on.
    """
    if linear:
        raise InputError("--head linear compares on a backbone, and an autoencoder has none; leave the option out")
    trainer = AutoencoderTrainer(config, splits, run, device=device, console=console)
    if resume:
        trainer.resume()
    write_config(trainer)
    trainer.run()
    return finish_autoencoder(trainer)


def finish_autoencoder(trainer: AutoencoderTrainer) -> dict[str, Any]:
    """Write everything that a finished run holds, `model.pt` last, and return its metrics.

    Validation and test are scored here, once.
    """
    run, splits = Run(trainer.directory), trainer.splits
    codes = codes_of(trainer.network, trainer.fit)
    trainer.description, trainer.network = for_people(trainer.description, trainer.network, codes)
    analyse(trainer)
    if trainer.config.calibration.enabled:
        calibrate(trainer)
    if trainer.config.novelty.enabled:
        novelty(trainer)
    numbers, distances = nearest_pictures(trainer.network, codes)
    sources = _sources(splits.fit, trainer.config.image, numbers, distances)
    drawn = _drawn(trainer.network, trainer.network.head.prototypes)
    for number, (decoded, nearest) in enumerate(zip(drawn, trainer.fit[torch.from_numpy(numbers)], strict=True)):
        run.picture(number).parent.mkdir(exist_ok=True)
        picture = decoded_beside_nearest(decoded, nearest.cpu().numpy())
        write_bytes(run.picture(number), _encoded(picture, "WEBP", quality=90, method=4))
    write_patches(trainer, run, sources)
    write_bytes(run.directory / "prototypes.png", prototypes_figure(trainer, drawn))
    write_bytes(run.directory / "reconstructions.png", reconstructions_picture(trainer))
    write_bytes(run.directory / "samples.npy", parity_samples(splits, trainer.config.image, sources))
    trainer.state.facts["autoencoder"] = {
        "reconstruction error": reconstruction_error(trainer.network, trainer.selection),
        **closeness(trainer.network, codes, codes_of(trainer.network, trainer.selection)),
        "drawn prototype to picture": drawn_to_picture(trainer.network, trainer.fit),
    }
    metrics = final_metrics(trainer)
    write_text(run.directory / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    write_text(run.directory / "provenance.json", json.dumps(provenance(trainer), indent=1) + "\n")
    write_history(trainer.state.history, run.directory)
    plot_curves(trainer.state.history, run.directory / "curves.png", trainer.config.name)
    save_network(run.model, trainer.network, trainer.description, sources)
    return metrics


@torch.no_grad()
def for_people(
    description: NetworkDescription, network: PrototypeAutoencoder, codes: Tensor
) -> tuple[NetworkDescription, PrototypeAutoencoder]:
    """The same network in the form that people read: each prototype belongs to the leaf that it speaks for most,
    prototypes are ordered by leaf, and similarities are counted from what is typical of `codes` [images, D].

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


def _sources(
    dataset: Dataset, rule: InputRule, numbers: NDArray[np.int64], distances: NDArray[np.float64]
) -> list[PrototypeSource]:
    """The nearest training image of every prototype; its one cell is all that the network saw of it."""
    return [
        PrototypeSource(
            image=dataset.images[number],
            cell=0,
            rows=1,
            columns=1,
            box=dataset.geometry(number, rule).cell_box(0, 1, 1),
            distance=distance,
        )
        for number, distance in zip(numbers.tolist(), distances.tolist(), strict=True)
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
    for place, (array, caption) in enumerate(panels):
        left = place * (PANEL + GAP)
        sheet.paste(Image.fromarray(array).resize((PANEL, height), Image.Resampling.NEAREST), (left, 0))
        draw.text((left + PANEL // 2, height + CAPTION // 2), caption, "black", ImageFont.load_default(15), anchor="mm")
    return sheet


def prototypes_figure(trainer: AutoencoderTrainer, drawn: NDArray[np.uint8]) -> bytes:
    """A PNG of all decoded prototypes uint8 [P, H, W, 3], each under the leaf it speaks for and its weight for it."""
    from matplotlib.figure import Figure

    head = trainer.network.head
    weight = head.effective_weight()[0].detach().cpu().numpy()
    columns = min(10, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.7 * rows), layout="constrained")
    for number, place in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        place.set_axis_off()
        if number < len(drawn):
            member = int(weight[:, number].argmax())
            label = head.taxonomy.nodes[int(head.member_node[0, member])][-1]
            place.imshow(drawn[number], interpolation="nearest")
            place.set_title(f"{label}\n{weight[member, number]:+.2f}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


@torch.inference_mode()
def reconstructions_picture(trainer: AutoencoderTrainer) -> bytes:
    """A PNG of selection pictures (above) and what the decoder makes of their codes (below)."""
    count = min(RECONSTRUCTIONS, len(trainer.selection))
    pictures = trainer.selection[torch.linspace(0, len(trainer.selection) - 1, count).long()]
    shown = trainer.network.planes(pictures).movedim(1, 3)
    given = (shown * 255.0).round().byte().expand(-1, -1, -1, 3).cpu().numpy()
    drawn = _drawn(trainer.network, codes_of(trainer.network, pictures))
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in (list(given), list(drawn))]))
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


def closeness(network: PrototypeAutoencoder, fit: Tensor, selection: Tensor) -> dict[str, float]:
    """How near prototypes and codes [images, D] are to each other, as shares of the mean squared distance between two
    fit codes, so that spaces of different scale compare: the mean over prototypes of the distance to the nearest fit
    code (R1), and the mean over selection codes of the distance to the nearest prototype (R2)."""
    between = 2.0 * fit.double().var(0, correction=0).sum().item()
    _, to_code = nearest_pictures(network, fit)
    prototypes = network.head.prototypes.detach().double()
    difference = selection.double()[:, None] - prototypes
    to_prototype = difference.square().sum(2).min(dim=1).values
    return {
        "prototype to code": float(to_code.mean()) / between,
        "code to prototype": to_prototype.mean().item() / between,
    }


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
