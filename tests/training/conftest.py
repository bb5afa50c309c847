"""Small data sets, a configuration for runs of a second or two, and a run that found its own number of prototypes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from training.config import Config
    from training.loop.plan import Stage
    from training.loop.trainer import Trainer

# Names that a page must escape, and one that matplotlib takes for a formula with a mistake in it.
AWKWARD = ("R&D/<blink>x", "R&D/'y\"", "R&D/{{ z }}", "$_{2$")
COUNTING = {
    "name": "counted",
    "batch": 16,
    "image": {"height": 32, "width": 32, "resize": "stretch"},
    "model": {
        "backbone": "shufflenet_v2_x0_5",
        "weights": None,
        "stride": 8,
        "reduced": 16,
        "dimensions": 8,
        "inner_factor": 1,
    },
    "data": {"hold_out": 0.25},
    "warm": {"epochs": 1},
    "joint": {"epochs": 1},
    "last_layers": {"epochs": 1},
    "prototypes": {"auto": True, "start": 4, "keep": 0.6, "epochs": 1},
}


@pytest.fixture(scope="session")
def counting_settings() -> dict[str, Any]:
    """The configuration of `counted_run`, as a mapping."""
    return COUNTING


@pytest.fixture(scope="session")
def awkward_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 4 test pictures of each of four leaves, of a colour that others may come near; no val."""
    root = tmp_path_factory.mktemp("awkward")
    generator = np.random.default_rng(0)
    for place, leaf in enumerate(AWKWARD):
        for split, count in (("train", 12), ("test", 4)):
            folder = root / split / leaf
            folder.mkdir(parents=True)
            for number in range(count):
                picture = generator.integers(0, 100, (24, 36, 3), dtype=np.uint8)
                picture += generator.integers(0, 80, 3, dtype=np.uint8)
                picture[..., place % 3] += np.uint8(35 + 35 * (place // 3))
                Image.fromarray(picture).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def counted_run(awkward_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that started with four prototypes per child and counted."""
    from rich.console import Console

    from training.config import parse_config
    from training.running import train

    run = tmp_path_factory.mktemp("runs") / "counted"
    console = Console(stderr=True, quiet=True)
    train(parse_config(COUNTING, "test"), awkward_data, run, linear=False, resume=False, device="cpu", console=console)
    return run


LEFT_OUT_CONFIG: dict[str, Any] = {
    "name": "tiny",
    "batch": 16,
    "image": {"height": 32, "width": 32, "resize": "stretch"},
    "model": {"backbone": "resnet18", "weights": None, "stride": 8, "reduced": 16, "dimensions": 8, "inner_factor": 1},
    "joint": {"epochs": 1},
    "last_layers": {"epochs": 1},
}


@pytest.fixture(scope="session")
def rendered_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered data set, with four images of each leaf in every split."""
    from training.rendered import render_dataset

    folder = tmp_path_factory.mktemp("rendered") / "data"
    render_dataset(folder, per_leaf=4, size=64)
    return folder


@pytest.fixture(scope="session")
def left_out(rendered_data: Path) -> tuple[str, ...]:
    """Two leaves of the rendered data set, of different parents; each has siblings."""
    from protoserve.data.dataset import read_taxonomy

    taxonomy = read_taxonomy(rendered_data)
    deep = [group for group in taxonomy.groups if set(group.children) <= set(taxonomy.leaves)]
    return tuple(taxonomy.names[group.children[0]] for group in (deep[0], deep[-1]))


@pytest.fixture(scope="session")
def left_out_run(rendered_data: Path, left_out: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the rendered data set that left out the leaves `left_out`."""
    from rich.console import Console

    from training.config import parse_config
    from training.running import train

    run, data = tmp_path_factory.mktemp("runs") / "left-out", {"hold_out": 0.25, "views": 1, "leave_out": left_out}
    config, console = parse_config({**LEFT_OUT_CONFIG, "data": data}, "tiny"), Console(quiet=True)
    train(config, rendered_data, run, linear=False, resume=False, device="cpu", console=console)
    return run


SMALL_LEAVES = ("A/x", "A/y", "B")
SMALL_CONFIG: dict[str, Any] = {
    "name": "small",
    "batch": 8,
    "image": {"height": 32, "width": 32, "resize": "stretch"},
    "model": {
        "backbone": "shufflenet_v2_x0_5",
        "weights": None,
        "stride": 8,
        "reduced": 12,
        "dimensions": 8,
        "prototypes_per_child": 2,
        "dropout": 0.0,
    },
    "data": {"hold_out": 0.25, "views": 3},
    "warm": {"epochs": 1},
    "joint": {"epochs": 2, "project_every": 1},
    "anchored": {"epochs": 2},
    "last_layers": {"epochs": 2},
}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training images of each of three leaves, a colour each with noise, and three to test on."""
    folder = tmp_path_factory.mktemp("small") / "data"
    generator = np.random.default_rng(0)
    for number, leaf in enumerate(SMALL_LEAVES):
        for split, count in (("train", 10), ("test", 3)):
            (folder / split / leaf).mkdir(parents=True)
            for image in range(count):
                colour = generator.normal(0, 20, (40, 40, 3)) + 60 + 120 * np.eye(3)[number]
                picture = Image.fromarray(colour.clip(0, 255).astype(np.uint8))
                picture.save(folder / split / leaf / f"{image}.png")
    return folder


@pytest.fixture(scope="session")
def small_config() -> Callable[..., Any]:
    """`small_config(joint={"epochs": 3})`: the small configuration with some keys of its sections changed."""
    from training.config import parse_config

    def change(**sections: Any) -> Any:
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL_CONFIG.items()}
        for name, value in sections.items():
            content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
        return parse_config(content, "small")

    return change


@pytest.fixture(scope="session")
def small_run(small_data: Path, small_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small configuration on the small data set."""
    from rich.console import Console

    from training.running import train

    run = tmp_path_factory.mktemp("runs") / "small"
    train(small_config(), small_data, run, linear=False, resume=False, device="cpu", console=Console(quiet=True))
    return run


@pytest.fixture(scope="session")
def trainer_at(small_data: Path) -> Callable[..., Trainer]:
    """`trainer_at(config, folder, until="project")`: a trainer that has done the steps before the first one of that
    stage; without `until`, none. `data` replaces the small data set."""
    from rich.console import Console

    from training.data.splits import read_splits
    from training.loop.trainer import Trainer
    from training.running import STAGES

    class Stopped(Exception):
        pass

    def stop(trainer: Trainer) -> dict[str, float]:
        raise Stopped

    def make(
        config: Config, directory: Path, *, until: Stage | None = None, linear: bool = False, data: Path = small_data
    ) -> Trainer:
        directory.mkdir(exist_ok=True)
        trainer = Trainer(
            config,
            read_splits(config, data),
            directory,
            linear=linear,
            device=torch.device("cpu"),
            console=Console(quiet=True),
        )
        if until is not None:
            with contextlib.suppress(Stopped):
                trainer.run({**STAGES, until: stop})
            assert trainer.step.stage == until
        return trainer

    return make
