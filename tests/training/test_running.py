"""A run from its call to its metrics: where it may start, where it resumes, and which options it refuses."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console

from protoserve.errors import InputError
from protoserve.files import DRAFT
from protoserve.networks.model_file import load_network
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from protoserve.networks.tiles import Tiles
from protoserve.run.folder import open_run
from protoserve.run.records import Metrics
from protoserve.run.similarities import read_similarities
from training import running
from training.config import Config, parse_config
from training.data.pictures import fitted
from training.data.splits import read_splits
from training.features.shared_cache import SharedCache
from training.loop.checkpoints import CHECKPOINT
from training.loop.plan import Stage
from training.loop.trainer import Trainer
from training.running import STAGES, _check_autoencoder

SHORT: dict[str, Any] = {"warm": {"epochs": 0}, "joint": {"epochs": 1}, "anchored": {"epochs": 0}}


def train(config: Config, data: Path, run: Path, **options: Any) -> Metrics | None:
    given: dict[str, Any] = {"linear": False, "resume": False, "device": "cpu", "console": Console(quiet=True)}
    return running.train(config, data, run, **{**given, **options})


@pytest.fixture
def short(small_config: Callable[..., Config]) -> Config:
    """A run of one epoch."""
    config: Config = small_config(**SHORT)
    return config


@pytest.fixture(scope="module")
def autoencoder() -> Config:
    """An autoencoder's run of one epoch."""
    setting = {"channels": [4, 2], "prototypes": 4, "epochs": 1}
    image = {"height": 20, "width": 16, "resize": "stretch"}
    content = {"name": "a", "image": image, "model": {"kind": "autoencoder"}, "autoencoder": setting}
    return parse_config(content, "test")


@pytest.fixture(scope="module")
def finished(
    small_config: Callable[..., Config], small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Metrics]:
    """(a finished run of one epoch, the metrics that `train` returned)"""
    run = tmp_path_factory.mktemp("running") / "finished"
    metrics = train(small_config(**SHORT), small_data, run)
    assert metrics is not None
    return run, metrics


def killed_run(config: Config, data: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed before its projection."""

    def die(trainer: Trainer) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(STAGES, "project", die)
        with pytest.raises(KeyboardInterrupt):
            train(config, data, run)
    assert (run / CHECKPOINT).is_file() and not (run / "model.pt").exists()
    return run


def test_every_stage_but_the_end_has_its_function() -> None:
    assert set(STAGES) == set(get_args(Stage)) - {"finish"}


def test_a_run_returns_the_metrics_that_it_leaves(finished: tuple[Path, Metrics]) -> None:
    run, metrics = finished
    assert open_run(run).metrics() == metrics
    assert {"selection", "validation", "test"} <= json.loads((run / "metrics.json").read_text()).keys()
    assert not (run / "tensorboard").exists()


def test_a_resumed_run_equals_an_uninterrupted_one(
    finished: tuple[Path, Metrics], short: Config, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_run(short, small_data, tmp_path / "run", monkeypatch)

    def repeated(trainer: Trainer) -> dict[str, float]:
        raise AssertionError("a step before the checkpoint is repeated")

    for stage in ("reduce", "initialise", "joint"):
        monkeypatch.setitem(STAGES, stage, repeated)
    train(short, small_data, run, resume=True)
    expected = torch.load(finished[0] / "model.pt", weights_only=True)
    found = torch.load(run / "model.pt", weights_only=True)
    assert found["sources"] == expected["sources"]
    assert all(torch.equal(found["state"][name], tensor) for name, tensor in expected["state"].items())
    assert (run / "history.csv").read_text() == (finished[0] / "history.csv").read_text()


def test_an_unfinished_run_is_neither_overwritten_nor_left_with_drafts(
    short: Config, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_run(short, small_data, tmp_path / "run", monkeypatch)
    with pytest.raises(InputError, match="run: holds an unfinished run"):
        train(short, small_data, run)
    draft = run / f"{DRAFT}01234567.metrics.json"
    draft.touch()
    train(short, small_data, run, resume=True)
    assert not draft.exists()


def test_a_finished_run_is_neither_overwritten_nor_resumed(
    finished: tuple[Path, Metrics], short: Config, small_data: Path
) -> None:
    before = (finished[0] / "model.pt").read_bytes()
    with pytest.raises(InputError, match=r"finished: holds a finished run; give another --run"):
        train(short, small_data, finished[0])
    with pytest.raises(InputError, match="holds a finished run"):
        train(short, small_data, finished[0], resume=True)
    assert (finished[0] / "model.pt").read_bytes() == before


def test_a_file_is_no_place_for_a_run(short: Config, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(InputError, match="run: is a file; give a folder for --run"):
        train(short, small_data, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "notes"


def test_folders_read_as_another_leaf_are_noted(short: Config, small_data: Path, tmp_path: Path) -> None:
    shutil.copytree(small_data, tmp_path / "data")
    (tmp_path / "data" / "test" / "C").mkdir()
    (tmp_path / "data" / "test" / "B").rename(tmp_path / "data" / "test" / "C" / "B")
    console = Console(file=io.StringIO(), width=200)
    train(short, tmp_path / "data", tmp_path / "run", console=console)
    assert isinstance(console.file, io.StringIO)
    assert "note: test/C/B is read as the leaf B" in console.file.getvalue().splitlines()


def test_a_run_shows_its_history_in_tensorboard(tiny_idx: Path, autoencoder: Config, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(autoencoder, tiny_idx, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


# ---- options that an autoencoder has no use for ----------------------------------------------------------------------


def test_an_autoencoder_has_no_backbone_for_a_linear_head(tiny_idx: Path, autoencoder: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--head linear compares on a backbone, and an autoencoder has none"):
        train(autoencoder, tiny_idx, tmp_path / "run", linear=True)
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_has_no_features_to_share(tiny_idx: Path, autoencoder: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--cache shares features of a backbone, and an autoencoder has none"):
        train(autoencoder, tiny_idx, tmp_path / "run", cache=SharedCache(tmp_path / "cache", 1000))
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_trains_in_one_process() -> None:
    _check_autoencoder(linear=False, processes=1, cache=None)
    with pytest.raises(InputError, match=r"model\.kind: autoencoder: it trains in one process"):
        _check_autoencoder(linear=False, processes=2, cache=None)


def test_a_run_with_tiles_learns_and_cuts_its_prototypes_from_tiles(
    small_config: Callable[..., Config], small_data: Path, tmp_path: Path
) -> None:
    """Fine-tuned through a cached trunk, with a backbone that also learns beside the prototypes."""
    config = small_config(
        model={"tile": 16, "tile_step": 8},
        finetune={"epochs": 1, "train_from": "stage3"},
        warm={"epochs": 0},
        joint={"epochs": 1, "backbone_learning_rate": 1e-3},
        anchored={"epochs": 1},
        last_layers={"epochs": 1},
    )
    assert train(config, small_data, tmp_path / "run") is not None
    network, description, sources = load_network(tmp_path / "run" / "model.pt")
    assert isinstance(network, PrototypeNetwork) and (description.tile, description.tile_step) == (16, 8)
    assert sources
    images = read_splits(config, small_data).fit
    # Pictures of 40 × 40 pixels, 1.25 to a pixel of the model: a tile of 20, a step of 10, a reach of 0.625 more.
    edges = {0: (0, 21), 1: (9, 31), 2: (19, 40)}
    for prototype, source in enumerate(sources):
        row, column = divmod(source.cell, 3)
        assert (source.rows, source.columns) == (3, 3)
        assert source.box == (edges[column][0], edges[row][0], edges[column][1], edges[row][1])
        picture = fitted(images, images.index(source.image), config.image).array
        tile = torch.from_numpy(picture[row * 8 : row * 8 + 16, column * 8 : column * 8 + 16])
        with torch.inference_mode():
            feature = network.backbone.body(network.normalise(tile[None])).mean((2, 3))[:, :, None, None]
            vector = network.latent(network.from_maps(feature))[0, :, 0, 0]
        torch.testing.assert_close(network.head.vectors()[prototype], vector, rtol=1e-4, atol=1e-4)
    analysis = json.loads((tmp_path / "run" / "analysis.json").read_text())
    for prototype in analysis["prototypes"]:
        for patch in prototype["patches"]:
            row, column = divmod(patch["cell"], 3)
            assert patch["box"] == [edges[column][0], edges[row][0], edges[column][1], edges[row][1]]


def test_a_plain_classifier_learns_on_tiles(
    small_config: Callable[..., Config], small_data: Path, tmp_path: Path
) -> None:
    config = small_config(model={"tile": 16}, finetune={"epochs": 1, "train_from": "stage3"}, linear={"epochs": 1})
    assert train(config, small_data, tmp_path / "run", linear=True) is not None
    network, description, _ = load_network(tmp_path / "run" / "model.pt")
    assert isinstance(network, LinearNetwork) and description.tile == 16
    assert network.backbone.tiles == Tiles(16, 16)


def with_pictures_of_an_inner_node(data: Path, folder: Path) -> Path:
    """A copy of a data set in which six pictures of A/y are labelled A."""
    shutil.copytree(data, folder)
    for number in range(6):
        (folder / "train" / "A" / "y" / f"{number}.png").rename(folder / "train" / "A" / f"{number}.png")
    return folder


def test_a_run_learns_from_pictures_of_an_inner_node_in_all_its_stages(
    small_config: Callable[..., Config], small_data: Path, tmp_path: Path
) -> None:
    """Whole, because every stage reads the labels."""
    data, printed = with_pictures_of_an_inner_node(small_data, tmp_path / "data"), io.StringIO()
    terms = {"outside": 1.0, "leaf": 0.3, "distillation": 1.0}
    some = {"prune": {"enabled": True}, "replace": {"enabled": True}, "start": {"share": 0.5}, "loss": terms}
    config = small_config(**{**SHORT, **some, "anchored": {"epochs": 1}, "last_layers": {"epochs": 1}})
    metrics = train(config, data, tmp_path / "run", console=Console(file=printed, width=200))
    assert metrics is not None
    assert "6 pictures of train are labelled only down to an inner node" in printed.getvalue()
    run = open_run(tmp_path / "run")
    provenance = run.provenance()
    assert provenance.images is not None and provenance.images.inner == 6
    assert provenance.data is not None and provenance.data.inner is not None
    kept = read_similarities(run.directory, len(load_network(run.model)[2] or ()))
    assert kept is not None and len(kept.fit.images) == provenance.images.fit - 6 and kept.fit.leaves.max() < 3


def test_a_plain_classifier_learns_from_pictures_of_an_inner_node(
    short: Config, small_data: Path, tmp_path: Path
) -> None:
    data = with_pictures_of_an_inner_node(small_data, tmp_path / "data")
    metrics = train(short, data, tmp_path / "run", linear=True)
    assert metrics is not None and metrics.test is not None and metrics.test.inner == 0
