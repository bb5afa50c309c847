"""An autoencoder's run: the files it writes, resuming it, and its pictures beside those that it claims to show."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.errors import InputError
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import load_network
from protoserve.run.folder import Run
from training import running
from training.config import Config, parse_config
from training.data.elastic import deform
from training.data.splits import Splits, read_splits
from training.loop.trainer import Trainer
from training.prototypes.codes import codes_of
from training.stages import autoencoder as autoencoder_module
from training.stages.autoencoder import start_codes

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "batch": 32,
    "image": {"height": 20, "width": 16, "resize": "stretch"},
    "model": {"kind": "autoencoder"},
    "data": {"hold_out": 0.2},
    "autoencoder": {
        "channels": [8, 4],
        "prototypes": 6,
        "epochs": 8,
        "learning_rate": 0.01,
        "elastic": {"sigma": 3, "alpha": 5},
    },
}


def quiet() -> Console:
    return Console(file=io.StringIO())


def config(**setting: Any) -> Config:
    return parse_config({**CONFIG, "autoencoder": {**CONFIG["autoencoder"], **setting}}, "test")


def train(config: Config, data: Path, run: Path, **options: Any) -> None:
    given: dict[str, Any] = {"linear": False, "resume": False, "device": "cpu", "console": quiet(), **options}
    running.train(config, data, run, **given)


@pytest.fixture(scope="module")
def whole(tiny_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("autoencoder") / "whole"
    train(config(), tiny_idx, run)
    return run


def network_of(run: Path) -> PrototypeAutoencoder:
    network, _, _ = load_network(run / "model.pt")
    assert isinstance(network, PrototypeAutoencoder)
    return network


def test_a_run_learns_and_writes_the_files_of_every_run(whole: Path) -> None:
    metrics = json.loads((whole / "metrics.json").read_text())
    # Four patterns under mild noise: chance is 0.25.
    assert metrics["test"]["accuracy"]["leaf"] > 0.9
    assert set(metrics["autoencoder"]) == {
        "reconstruction error",
        "prototype to code",
        "code to prototype",
        "drawn prototype to picture",
    }
    for name in ("config.yaml", "history.csv", "curves.png", "provenance.json", "samples.npy"):
        assert (whole / name).stat().st_size > 0
    rows = (whole / "history.csv").read_text().splitlines()
    stages = [row.split(",")[1] for row in rows[1:]]
    assert stages == ["start codes", *["autoencoder"] * 8, "assign", "analyse", "centre", "calibrate", "novelty"]
    assert "prototype_near_code" in rows[0]
    assert Run(whole).samples().shape[1:] == (20, 16, 3)


def trainer_of(config: Config, splits: Splits, run: Path) -> Trainer:
    return Trainer(config, splits, run, linear=False, device=torch.device("cpu"), console=quiet())


class Stop(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("epochs", [0, 3, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    epochs: int, whole: Path, tiny_idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch, after `epochs` whole ones."""
    left = epochs * 5 + 2

    def deform_until_stopped(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop
        return deform(*arguments, **options)

    monkeypatch.setattr(autoencoder_module, "deform", deform_until_stopped)
    with pytest.raises(Stop):
        train(config(), tiny_idx, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model.pt").exists()
    train(config(), tiny_idx, tmp_path / "run", resume=True)
    expected = torch.load(whole / "model.pt", weights_only=True)
    found = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert (found["description"], found["sources"]) == (expected["description"], expected["sources"])
    assert all(torch.equal(found["state"][name], tensor) for name, tensor in expected["state"].items())
    assert (tmp_path / "run" / "history.csv").read_text() == (whole / "history.csv").read_text()


def test_a_checkpoint_of_other_settings_is_refused(tiny_idx: Path, tmp_path: Path) -> None:
    splits = read_splits(config(), tiny_idx)
    trainer_of(config(), splits, tmp_path).save()
    other = trainer_of(config(prototypes=5), splits, tmp_path)
    with pytest.raises(InputError, match=r"another autoencoder\.prototypes|another config\.autoencoder\.prototypes"):
        other.resume()


# ---- prototypes ----------------------------------------------------------------------------------------------


def test_sources_are_the_nearest_training_pictures(whole: Path, tiny_idx: Path) -> None:
    network, description, sources = load_network(whole / "model.pt")
    assert isinstance(network, PrototypeAutoencoder) and sources is not None
    fit = read_splits(config(), tiny_idx).fit
    assert fit.pixels is not None
    codes = []
    with torch.inference_mode():
        for pixels in fit.pixels:
            image = torch.from_numpy(np.repeat(pixels[None, :, :, None], 3, axis=3))
            codes.append(network.latent(network.features(image)).flatten().double().numpy())
    for prototype, source in zip(network.head.prototypes.detach().double().numpy(), sources, strict=True):
        distances = [float(((code - prototype) ** 2).sum()) for code in codes]
        assert source.distance == pytest.approx(min(distances), rel=1e-4, abs=1e-6)
        assert distances[fit.images.index(source.image)] == pytest.approx(min(distances), rel=1e-4, abs=1e-6)
        assert (source.cell, source.rows, source.columns, source.box) == (0, 1, 1, (0, 0, 16, 20))
    weight = network.head.effective_weight()[0].detach().numpy()
    leaves = list(network.head.taxonomy.leaves)
    assert description.prototype_child == [leaves[member] for member in weight.argmax(0)]
    assert description.prototype_child == sorted(description.prototype_child)


def test_a_prototype_s_picture_shows_it_decoded_and_its_nearest_training_picture(whole: Path, tiny_idx: Path) -> None:
    network, _, sources = load_network(whole / "model.pt")
    assert isinstance(network, PrototypeAutoencoder) and sources is not None
    train_split = read_split(tiny_idx, "train", read_taxonomy(tiny_idx))
    with torch.inference_mode():
        drawn = network.decode(network.head.prototypes)[:, 0].numpy()
    for number, source in enumerate(sources):
        picture = np.asarray(Image.open(Run(whole).picture(number)).convert("L"), dtype=np.float64)
        given = np.asarray(train_split.picture(train_split.index(source.image)).picture.convert("L"))
        # 224 pixels across, so 14 for one; the middles of the enlarged pixels, through a lossy file.
        left, right = picture[7:280:14, 7:224:14], picture[7:280:14, 239::14]
        assert np.abs(left - 255 * drawn[number]).mean() < 12
        assert np.abs(right - given).mean() < 12


def test_pictures_of_all_prototypes_and_of_reconstructions_are_there(whole: Path) -> None:
    for name in ("prototypes.png", "reconstructions.png"):
        with Image.open(whole / name) as picture:
            picture.load()
            assert picture.width >= 192


def test_prototypes_start_as_codes_of_their_leaves_pictures(tiny_idx: Path, tmp_path: Path) -> None:
    splits = read_splits(config(), tiny_idx)
    trainer = trainer_of(config(), splits, tmp_path)
    start_codes(trainer)
    codes = codes_of(trainer.autoencoder, trainer.memory.fit)
    for prototype, child in zip(trainer.autoencoder.head.prototypes.detach(), [0, 0, 1, 1, 2, 3], strict=True):
        distance = (codes - prototype).square().sum(1)
        nearest = int(distance.argmin())
        assert float(distance[nearest]) < 1e-9
        assert splits.fit.leaves[nearest] == child


# ---- what goes in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"kind": "flat"}}, "the section autoencoder needs model.kind: autoencoder"),
        ({"model": {"kind": "autoencoder", "weights": None}}, "an autoencoder has no backbone"),
        ({"joint": {"epochs": 3}}, "the section joint does not apply to an autoencoder"),
        ({"autoencoder": {"prototypes": 1}}, "autoencoder.prototypes"),
        ({"autoencoder": {"prototype": 9}}, "did you mean 'prototypes'"),
    ],
)
def test_settings_that_do_not_apply_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config({**CONFIG, **change}, "mnist.yaml")
    assert said in str(caught.value)
