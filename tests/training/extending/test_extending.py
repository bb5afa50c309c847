"""The classes of a finished run change: what comes out is a whole run, and the old one is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from protoserve.errors import InputError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.networks.model_file import load_network, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.reporting.page import report_page
from protoserve.run.folder import open_run
from protoserve.run.similarities import read_similarities
from training.config import Config
from training.extending.changes import read_changes
from training.extending.extending import Extension, extend
from training.extending.finished import read_finished
from training.extending.pictures import learned_pictures
from training.outcome.evaluating import evaluate
from training.outcome.report import run_report
from training.running import train

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of a class that the small data set lacks."""
    folder, generator = tmp_path_factory.mktemp("pictures") / "white", np.random.default_rng(5)
    folder.mkdir()
    for number in range(6):
        picture = (generator.normal(0, 20, (40, 40, 3)) + 200).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def extended(run: Path, data: Path, output: Path, *changes: list[str], tolerance: float = 100) -> Extension:
    return extend(run, read_changes(*changes), data, output, tolerance=tolerance, device="cpu", console=QUIET)


@pytest.fixture(scope="module")
def added(small_run: Path, small_data: Path, white: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with the class A/w."""
    output = tmp_path_factory.mktemp("runs") / "added"
    extended(small_run, small_data, output, [f"A/w={white}"], [], [], [])
    return output


def folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def test_the_new_class_is_found_and_the_old_prototypes_stay(added: Path, small_run: Path, white: Path) -> None:
    network, description, sources = load_network(added / "model.pt")
    before, _, old_sources = load_network(small_run / "model.pt")
    assert isinstance(network, PrototypeNetwork) and isinstance(before, PrototypeNetwork)
    assert sources is not None and old_sources is not None
    taxonomy, right = network.head.taxonomy, 0
    for file in sorted(white.iterdir()):
        with Image.open(file) as picture:
            array = fit(decode(picture.convert("RGB")), description.input).array
        with torch.inference_mode():
            answer = network(torch.from_numpy(array[None])).log_probability[0, list(taxonomy.leaves)]
        right += taxonomy.names[taxonomy.leaves[int(answer.argmax())]] == "A/w"
    assert right >= 5
    kept = [number for number, source in enumerate(sources) if not source.image.startswith("added/")]
    assert [sources[number] for number in kept] == old_sources
    assert torch.equal(network.head.prototypes[kept], before.head.prototypes)
    for name, tensor in before.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], tensor)


def test_a_new_prototype_is_the_cell_of_its_source(added: Path) -> None:
    network, description, sources = load_network(added / "model.pt")
    assert isinstance(network, PrototypeNetwork) and sources is not None
    fresh = [number for number, source in enumerate(sources) if source.image.startswith("added/A/w/")]
    assert len(fresh) == 2 + 1  # Two of its own, and one of A, above it.
    for number in fresh:
        with Image.open(added / sources[number].image) as picture:
            array = fit(decode(picture.convert("RGB")), description.input).array
        with torch.inference_mode():
            latent = network.latent(network.features(torch.from_numpy(array[None])))[0].flatten(1)
        assert latent[:, sources[number].cell].numpy() == pytest.approx(
            network.head.prototypes[number].detach().numpy(), abs=1e-5
        )


def test_the_records_follow(added: Path, small_data: Path, white: Path) -> None:
    run = open_run(added)
    network, _, sources = load_network(run.model)
    assert isinstance(network, PrototypeNetwork) and sources is not None
    (change,) = run.provenance().changes
    assert (change.action, change.node, change.folder, change.run) == ("add", "A/w", white.name, "small")
    assert (change.pictures, change.held_out, change.prototypes) == (6, 2, 3)
    metrics, analysis = run.metrics(), run.analysis()
    assert metrics.calibration is not None and set(metrics.calibration.temperature) == {"", "A"}
    assert metrics.selection is not None and metrics.selection.images == 6 + 2
    assert analysis is not None and [p.id for p in analysis.prototypes] == list(range(len(sources)))
    assert all(run.picture(number).is_file() and run.patches(number).is_file() for number in range(len(sources)))
    kept = read_similarities(added, len(sources))
    assert kept is not None and len(kept.fit.images) == 24 + 4
    # Usual similarities: the mean over the children of a prototype's group, measured here from pictures.
    assert (network.head.usual != 0).all()
    evaluation = evaluate(added, small_data, "test", device="cpu", console=QUIET)
    assert evaluation.images == 9
    assert report_page(run_report(added))


def test_an_extended_run_can_be_extended_again(added: Path, small_data: Path, white: Path, tmp_path: Path) -> None:
    extension = extended(added, small_data, tmp_path / "twice", [f"D/v={white}"], ["B"], ["A/w=white"], [])
    run = open_run(tmp_path / "twice")
    assert [change.action for change in run.provenance().changes] == ["add", "remove", "rename", "add"]
    assert run.provenance().left_out == {"B": "B"}
    network, _, sources = load_network(run.model)
    assert isinstance(network, PrototypeNetwork) and sources is not None
    assert {"A/white", "D/v"} <= set(network.head.taxonomy.names)
    assert not any(source.image.startswith("train/B/") for source in sources)
    assert extension.seconds > 0


def test_the_old_run_stays_as_it_was(small_run: Path, small_data: Path, tmp_path: Path) -> None:
    before = folder_hash(small_run)
    extended(small_run, small_data, tmp_path / "merged", [], [], [], ["A/xy=x,y"])
    assert folder_hash(small_run) == before
    assert open_run(tmp_path / "merged").metrics().selection is not None


def test_without_what_the_run_keeps_the_data_set_gives_the_same(
    small_run: Path, small_data: Path, white: Path, added: Path, tmp_path: Path
) -> None:
    run = tmp_path / "older"
    run.mkdir()
    for entry in small_run.iterdir():
        if entry.name != "similarities.npz":
            (run / entry.name).symlink_to(entry)
    extended(run, small_data, tmp_path / "new", [f"A/w={white}"], [], [], [])
    first, second = (load_network(folder / "model.pt")[0] for folder in (added, tmp_path / "new"))
    assert isinstance(first, PrototypeNetwork) and isinstance(second, PrototypeNetwork)
    # Kept similarities have half precision.
    assert first.head.weight.detach().numpy() == pytest.approx(second.head.weight.detach().numpy(), abs=0.05)


def test_a_loss_above_the_tolerance_is_refused_and_writes_nothing(
    small_run: Path, small_data: Path, tmp_path: Path
) -> None:
    # Pictures of B under another name, each three times: the old class must lose, however little they count.
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in (small_data / "train" / "B").iterdir():
        for copy in range(3):
            shutil.copyfile(file, folder / f"{copy}-{file.name}")
    with pytest.raises(InputError, match=r"the old classes lose \d+\.\d\d points at .*, more than --tolerance 0"):
        extended(small_run, small_data, tmp_path / "new", [f"E={folder}"], [], [], [], tolerance=0)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((["A/w={empty}"], [], [], []), "holds no pictures; add some of 'A/w'"),
        ((["A/w={empty}/none"], [], [], []), "no such folder; give the folder with the pictures of 'A/w'"),
        (([], ["A/q"], [], []), "no class 'A/q'"),
    ],
)
def test_what_can_not_be_is_refused(
    small_run: Path, small_data: Path, tmp_path: Path, changes: tuple[list[str], ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [[text.format(empty=tmp_path / "empty") for text in part] for part in changes]
    with pytest.raises(InputError, match=said):
        extended(small_run, small_data, tmp_path / "new", *filled)
    assert not (tmp_path / "new").exists()


def test_all_but_renaming_needs_the_data_set(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --data, the data set that it learned from"):
        extend(small_run, read_changes([], ["B"], [], []), None, tmp_path / "new", device="cpu", console=QUIET)


def test_a_network_without_prototypes_is_refused(small_run: Path, tmp_path: Path) -> None:
    from protoserve.networks.network import LinearNetwork

    network, description, _ = load_network(small_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    plain = LinearNetwork(network.backbone, network.head.taxonomy)
    (tmp_path / "linear").mkdir()
    save_network(tmp_path / "linear" / "model.pt", plain, description.model_copy(update={"kind": "linear"}))
    with pytest.raises(InputError, match="a linear head has no prototypes to cut from pictures; train again"):
        extended(tmp_path / "linear", tmp_path, tmp_path / "new", [], ["B"], [], [])


@pytest.mark.slow
@pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes minutes: make test-faults")
def test_a_killed_command_leaves_nothing_that_is_read_and_its_repetition_ends_the_same(
    small_run: Path, small_data: Path, white: Path, added: Path, tmp_path: Path
) -> None:
    before, output = folder_hash(small_run), tmp_path / "new"
    arguments = ["extend", small_run, f"A/w={white}", "--data", small_data, "-o", output, "--tolerance", "100"]
    command = [sys.executable, "-c", "from protoserve.cli.root import main; main()", *map(str, arguments)]
    for wanted in ("cache", "prototypes", "metrics.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob(f".draft-*/{wanted}")):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not output.exists()
        assert folder_hash(small_run) == before
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first, second = (load_network(folder / "model.pt")[0].state_dict() for folder in (added, output))
    assert all(torch.equal(first[name], second[name]) for name in first)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (added, output)]
    assert metrics[0]["test"] == metrics[1]["test"]


def test_a_run_that_learned_from_pictures_of_an_inner_node_can_be_extended(
    small_config: Callable[..., Config], small_data: Path, white: Path, tmp_path: Path
) -> None:
    """With or without kept similarities, from the pictures that are labelled down to a leaf."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(small_data, data)
    for number in range(6):
        (data / "train" / "A" / "y" / f"{number}.png").rename(data / "train" / "A" / f"{number}.png")
    config = small_config(warm={"epochs": 0}, joint={"epochs": 1}, anchored={"epochs": 0})
    train(config, data, run, linear=False, resume=False, device="cpu", console=QUIET)
    sources = load_network(run / "model.pt")[2]
    # Some prototype was cut from a picture that the extension does not know.
    assert sources is not None and any(source.image.rpartition("/")[0] == "train/A" for source in sources)
    finished = read_finished(run)
    for kept in (read_similarities(run, len(sources)), None):
        fit_images, _ = learned_pictures(run, data, finished.taxonomy, kept, finished.config, QUIET)
        assert fit_images.to_leaf.all()
    extension = extended(run, data, tmp_path / "more", [f"A/w={white}"], [], [], [])
    assert extension is not None and open_run(tmp_path / "more").model.is_file()
