"""Mistakes in the commands that make data sets, runs and bundles: one clear line, exit code 2, never a traceback.

The commands run in this process, through the same `main` as on the command line: an error that is not meant for people
leaves it as the exception that it is and fails the test. `predict`, `explain`, `inspect`, `serve` and `publish` are
tested beside their rooms.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protoserve.cli.root import main
from protoserve.networks.model_file import NetworkDescription, build, save_network

CONFIG = """
name: tiny
batch: 8
image: {height: 64, width: 64, resize: stretch}
model: {backbone: resnet18, weights: null, stride: 8, reduced: null, dimensions: 8, prototypes_per_child: 1}
data: {hold_out: 0.25}
finetune: {epochs: 1}
joint: {epochs: 1}
last_layers: {epochs: 1}
"""


SMALL = b"""
name: small
image: {height: 8, width: 8, resize: stretch}
model: {backbone: squeezenet1_1, weights: null, reduced: null}
"""


@dataclass(frozen=True)
class Bench:
    """A folder with valid inputs to damage: a data set, a configuration, a run and a bundle."""

    directory: Path
    data: Path
    config: Path
    run: Path
    bundle: Path

    def config_with(self, old: str, new: str) -> Path:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))
        return self.config

    def file(self, name: str, content: bytes = b"of another kind") -> Path:
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file


@pytest.fixture
def bench(tmp_path: Path, tiny_run: Path, tiny_bundle: Path) -> Bench:
    """Small inputs; run and bundle share the data set's taxonomy."""
    description = json.loads((tiny_bundle / "manifest.json").read_text())["taxonomy"]
    inner = {tuple(node[:-1]) for node in description["nodes"]}
    leaves = [node for node in description["nodes"] if tuple(node) not in inner]
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for leaf in leaves:
            folder = tmp_path.joinpath("data", split, *leaf)
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return Bench(
        directory=tmp_path,
        data=tmp_path / "data",
        config=tmp_path / "tiny.yaml",
        run=shutil.copytree(tiny_run, tmp_path / "run"),
        bundle=shutil.copytree(tiny_bundle, tmp_path / "bundle"),
    )


def refuse(capsys: pytest.CaptureFixture[str], arguments: list[str | Path], *said: str) -> None:
    """The command exits with 2, prints one line with `said` on standard error, and nothing else."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    output, message = capsys.readouterr()
    assert ended.value.code == 2, message
    assert output == ""
    (line,) = [line for line in message.splitlines() if line.startswith("error: ")]
    assert message.endswith(f"{line}\n")
    for words in said:
        assert words in line


Case = tuple[Callable[[Bench], list[str | Path]], str]


def training(bench: Bench, *more: str | Path, config: Path | None = None, run: Path | None = None) -> list[str | Path]:
    target = bench.directory / "new" if run is None else run
    chosen = bench.config if config is None else config
    return ["train", chosen, "--data", bench.data, "--run", target, "--device", "cpu", *more]


def without(bench: Bench, *paths: str) -> Bench:
    for path in paths:
        place = bench.data / path
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
    return bench


def broken_picture(bench: Bench, split: str) -> Bench:
    next((bench.data / split).rglob("*.png")).write_bytes(b"no picture")
    return bench


def stray_picture(bench: Bench, path: str) -> Bench:
    place = bench.data / path
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(next((bench.data / "train").rglob("*.png")), place)
    return bench


RENDER: dict[str, Case] = {
    "a folder with something else": (lambda b: ["data", "render", b.data], "holds no rendered data set"),
    "a file": (lambda b: ["data", "render", b.file("taken")], "is a file"),
    "below a file": (lambda b: ["data", "render", b.file("taken") / "new"], "taken"),
}

TRAIN: dict[str, Case] = {
    "no configuration": (lambda b: training(b, config=b.directory / "gone.yaml"), "no such configuration"),
    "a folder as configuration": (lambda b: training(b, config=b.directory), "no such configuration"),
    "torn YAML": (lambda b: training(b, config=b.file("torn.yaml", b"name: [")), "not valid YAML"),
    "binary YAML": (lambda b: training(b, config=b.file("torn.yaml", b"\xff\xfe\x00")), "can't read it"),
    "a list as YAML": (lambda b: training(b, config=b.file("list.yaml", b"- name")), "write keys and values"),
    "an unknown key": (lambda b: training(b, config=b.config_with("batch:", "bacht:")), "did you mean 'batch'?"),
    "an unknown key below": (
        lambda b: training(b, config=b.config_with("epochs: 1}\njoint", "epoch: 1}\njoint")),
        "'finetune.epoch'; did you mean 'epochs'?",
    ),
    "no name": (lambda b: training(b, config=b.config_with("name: tiny", "")), "'name' is missing"),
    "a word for a number": (lambda b: training(b, config=b.config_with("batch: 8", "batch: many")), "'many'"),
    "a number for a section": (
        lambda b: training(b, config=b.config_with("finetune: {epochs: 1}", "finetune: 3")),
        "finetune",
    ),
    "a number for a section that an option sets": (
        lambda b: training(b, "--weights", "none", config=b.file("model.yaml", b"name: x\nmodel: 3\n")),
        "model",
    ),
    "an unknown backbone": (
        lambda b: training(b, config=b.config_with("resnet18", "resnet19")),
        "no torchvision model 'resnet19'; did you mean 'resnet1",
    ),
    "a backbone without a feature map": (
        lambda b: training(b, config=b.config_with("resnet18", "vit_b_32")),
        "vit_b_32",
    ),
    "a stride that is not there": (
        lambda b: training(b, config=b.config_with("stride: 8", "stride: 7")),
        "no feature map of stride 7",
    ),
    "pictures too small for the backbone": (
        lambda b: training(b, config=b.file("small.yaml", SMALL)),
        "image",
    ),
    "no weights file": (
        lambda b: training(b, "--weights", "gone.pth"),
        "'gone.pth' are neither a file nor weights",
    ),
    "weights that are none": (lambda b: training(b, "--weights", b.file("text.pth")), "can't read the weights"),
    "weights of something else": (
        lambda b: training(b, "--weights", b.run / "model.pt"),
        "these are not weights of resnet18",
    ),
    "no data": (lambda b: ["train", b.config, "--data", b.directory / "gone", "--run", b.directory / "new"], "no such"),
    "a file as data": (lambda b: ["train", b.config, "--data", b.config, "--run", b.directory / "new"], "no such"),
    "no train split": (lambda b: training(without(b, "train")), "holds no folder 'train'"),
    "a leaf without pictures": (
        lambda b: training(without(b, "train/Scuba/0.png", "train/Scuba/1.png")),
        "leaf 'Scuba' has no images",
    ),
    "pictures beside folders": (
        lambda b: training(stray_picture(b, "train/Animal/stray.png")),
        "holds both images and the folder",
    ),
    "a class that only val has": (
        lambda b: training(stray_picture(b, "val/Tool/Blade/Knive/0.png")),
        "no leaf 'Tool/Blade/Knive'; did you mean 'Tool/Blade/Knife'?",
    ),
    "a split without pictures": (
        lambda b: training(without(b, "val/Animal", "val/Tool", "val/Scuba")),
        "holds no images",
    ),
    "one class": (lambda b: training(without(b, "train/Animal", "train/Tool")), "nothing to tell apart"),
    "nothing to select on": (
        lambda b: training(without(b, "val"), config=b.config_with("hold_out: 0.25", "hold_out: 0")),
        "nothing to select on",
    ),
    "a training picture that is none": (lambda b: training(broken_picture(b, "train")), ".png"),
    "a val picture that is none": (lambda b: training(broken_picture(b, "val")), ".png"),
    "a finished run": (lambda b: training(b, run=b.run), "holds a finished run"),
    "a finished run to resume": (lambda b: training(b, "--resume", run=b.run), "holds a finished run"),
    "an unfinished run": (
        lambda b: training(b, run=b.file("half/checkpoint.pt").parent),
        "holds an unfinished run",
    ),
    "a checkpoint that is none": (
        lambda b: training(b, "--resume", run=b.file("half/checkpoint.pt").parent),
        "checkpoint.pt",
    ),
    "a file as run": (lambda b: training(b, run=b.file("taken")), "is a file"),
    "a cache that is not writable": (lambda b: training(b, "--cache", b.file("taken") / "c"), "can't make this folder"),
    "several broken pictures": (
        lambda b: training(broken_picture(broken_picture(b, "test"), "val")),
        "2 pictures can't be read: val/",
    ),
    "a picture with two paths in a table": (
        lambda b: [
            "train",
            b.config,
            "--data",
            b.file("m.csv", b"image,path,split\nx.png,A,train\n./x.png,B,test\n"),
            "--run",
            b.directory / "new",
        ],
        "row 2, column 'image': './x.png' is the file 'x.png', which is in row 1 already",
    ),
    "a run below a file": (lambda b: training(b, run=b.file("taken") / "new"), "taken"),
}

EVALUATE: dict[str, Case] = {
    "no run": (lambda b: ["evaluate", b.directory / "gone", "--data", b.data], "no such run"),
    "a file as run": (lambda b: ["evaluate", b.config, "--data", b.data], "no such run"),
    "an unfinished run": (lambda b: ["evaluate", b.data, "--data", b.data], "not finished"),
    "a model that is none": (
        lambda b: ["evaluate", b.file("run/model.pt").parent, "--data", b.data],
        "can't read the checkpoint",
    ),
    "an unknown split": (
        lambda b: ["evaluate", b.run, "--data", b.data, "--split", "tset"],
        "no split 'tset'; did you mean 'test'?",
    ),
    "no data": (lambda b: ["evaluate", b.run, "--data", b.directory / "gone"], "gone"),
    "a data set of other classes": (
        lambda b: ["evaluate", b.run, "--data", stray_picture(b, "test/Robot/0.png").data],
        "no leaf 'Robot'",
    ),
    "a picture that is none": (lambda b: ["evaluate", b.run, "--data", broken_picture(b, "test").data], ".png"),
}

EXPORT: dict[str, Case] = {
    "no run": (lambda b: ["export", b.directory / "gone", "--bundle", b.directory / "new"], "no such run"),
    "an unfinished run": (lambda b: ["export", b.data, "--bundle", b.directory / "new"], "not finished"),
    "an unknown target": (
        lambda b: ["export", b.run, "--to", "onnx,torchscrip", "--bundle", b.directory / "new"],
        "did you mean 'torchscript'?",
    ),
    "no target": (lambda b: ["export", b.run, "--to", "", "--bundle", b.directory / "new"], "--to"),
    "a bundle without the graph that is served": (
        lambda b: ["export", b.run, "--to", "torchscript", "--bundle", b.directory / "new"],
        "always holds 'onnx'",
    ),
    "a place that is taken": (lambda b: ["export", b.run, "--bundle", b.bundle], "--overwrite"),
    "a folder that is no bundle": (
        lambda b: ["export", b.run, "--bundle", b.data, "--overwrite"],
        "holds no manifest.json",
    ),
    "a file as bundle": (lambda b: ["export", b.run, "--bundle", b.config, "--overwrite"], "holds no manifest.json"),
    "below a file": (lambda b: ["export", b.run, "--bundle", b.config / "new"], "tiny.yaml"),
    "a model that is none": (
        lambda b: ["export", b.file("run/model.pt").parent, "--bundle", b.directory / "new"],
        "can't read the checkpoint",
    ),
    "torn metrics": (
        lambda b: ["export", b.file("run/metrics.json").parent, "--bundle", b.directory / "new"],
        "metrics.json",
    ),
    "torn samples": (
        lambda b: ["export", b.file("run/samples.npy").parent, "--bundle", b.directory / "new"],
        "samples.npy",
    ),
    "an empty name": (lambda b: ["export", b.run, "--bundle", b.directory / "new", "--name", ""], "name"),
}

VALIDATE: dict[str, Case] = {
    "no bundle": (lambda b: ["validate", b.directory / "gone", "--data", b.data], "no such bundle"),
    "a run": (lambda b: ["validate", b.run, "--data", b.data], "manifest.json is missing"),
    "an altered bundle": (
        lambda b: ["validate", b.file("bundle/model.onnx").parent, "--data", b.data],
        "model.onnx does not match",
    ),
    "an unknown split": (lambda b: ["validate", b.bundle, "--data", b.data, "--split", "vall"], "did you mean 'val'?"),
    "no data": (lambda b: ["validate", b.bundle, "--data", b.directory / "gone"], "gone"),
    "a data set of other classes": (
        lambda b: ["validate", b.bundle, "--data", stray_picture(b, "test/Robot/0.png").data],
        "no leaf 'Robot'",
    ),
    "a picture that is none": (lambda b: ["validate", b.bundle, "--data", broken_picture(b, "test").data], ".png"),
}


@pytest.mark.parametrize("case", RENDER.values(), ids=RENDER)
def test_data_render_refuses(case: Case, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = case
    refuse(capsys, arguments(bench), said)


@pytest.mark.parametrize("case", TRAIN.values(), ids=TRAIN)
def test_train_refuses(case: Case, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = case
    refuse(capsys, arguments(bench), said)


@pytest.mark.parametrize("case", EVALUATE.values(), ids=EVALUATE)
def test_evaluate_refuses(case: Case, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = case
    refuse(capsys, arguments(bench), said)


@pytest.mark.parametrize("case", EXPORT.values(), ids=EXPORT)
def test_export_refuses(case: Case, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = case
    before = sorted(bench.directory.iterdir())
    command = arguments(bench)
    refuse(capsys, command, said)
    assert sorted(bench.directory.iterdir()) == before, "something half was left behind"


@pytest.mark.parametrize("case", VALIDATE.values(), ids=VALIDATE)
def test_validate_refuses(case: Case, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = case
    refuse(capsys, arguments(bench), said)


def test_export_refuses_a_linear_head(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((bench.bundle / "manifest.json").read_text())
    description = NetworkDescription(
        kind="linear", taxonomy=content["taxonomy"], input=content["input"], backbone="resnet18", stride=8
    )
    save_network(bench.run / "model.pt", build(description), description)
    refuse(capsys, ["export", bench.run, "--bundle", bench.directory / "new"], "linear head")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(capsys, training(bench, "--device", "cuda"), "--device cuda")
    refuse(capsys, ["evaluate", bench.run, "--data", bench.data, "--device", "cuda"], "--device cuda")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["data"],
        ["data", "rendre"],
        ["data", "render"],
        ["data", "render", "new", "--per-leaf", "0"],
        ["data", "render", "new", "--size", "63"],
        ["data", "render", "new", "--seed", "-1"],
        ["train"],
        ["train", "tiny.yaml", "--data", "data"],
        ["train", "tiny.yaml", "--data", "data", "--run", "new", "--seed", "-1"],
        ["train", "tiny.yaml", "--data", "data", "--run", "new", "--epochs", "3"],
        ["train", "tiny.yaml", "--data", "data", "--run", "new", "--head", "liner"],
        ["train", "tiny.yaml", "--data", "data", "--run", "new", "--device", "gpu"],
        ["evaluate", "run", "--data", "data", "--device", "tpu"],
        ["validate", "bundle", "--data", "data", "--device", "tpu"],
        ["evaluate", "run"],
        ["export", "run"],
        ["validate", "bundle"],
        ["validate", "bundle", "data"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.directory)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Usage: protoserve" in "".join(capsys.readouterr())
    assert not (bench.directory / "new").exists()


# ---- what the machine refuses ----------------------------------------------------------------------------------------


FULL: dict[str, Callable[[Bench], list[str | Path]]] = {
    "train": training,
    "export": lambda b: ["export", b.run, "--bundle", b.directory / "new"],
    "score": lambda b: ["score", b.bundle, b.data, "-o", b.directory / "new.parquet", "--device", "cpu"],
    "ensemble": lambda b: ["ensemble", b.directory / "new", b.bundle],
    "render": lambda b: ["data", "render", b.directory / "new"],
    "explain": lambda b: [
        "explain",
        b.bundle,
        next(b.data.rglob("*.png")),
        "-o",
        b.directory / "new.png",
        "--device",
        "cpu",
    ],
}


@pytest.mark.parametrize("command", FULL.values(), ids=FULL)
def test_a_full_disk_ends_in_one_line(
    command: Callable[[Bench], list[str | Path]], bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file may have more than 10 bytes, which fails as a full disk does."""
    arguments = command(bench)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capfd.readouterr()
    with capfd.disabled():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        reader, writer = os.pipe()
        stderr = os.dup(2)
        os.dup2(writer, 2)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    assert ended.value.code == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "can't write it (File too large); free some space" in line and "new" in line


def test_folders_whose_names_are_not_utf8_are_used_all_the_same(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records show the name with escapes; only a bundle's folder must be UTF-8, because onnxruntime opens it."""
    data = bench.data.rename(bench.directory / os.fsdecode(b"caf\xe9"))
    run, bundle = bench.directory / os.fsdecode(b"r\xe9"), bench.directory / "whole"
    for arguments in (
        ["train", bench.config, "--data", data, "--run", run, "--device", "cpu"],
        ["evaluate", run, "--data", data, "--device", "cpu"],
        ["report", run],
        ["export", run, "--bundle", bundle],
        ["validate", bundle, "--data", data, "--device", "cpu"],
        ["score", bundle, data, "-o", bench.directory / os.fsdecode(b"s\xe9.parquet"), "--device", "cpu"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0, capsys.readouterr().err
    capsys.readouterr()
    assert json.loads((run / "provenance.json").read_text())["data"]["root"] == "caf\\xe9"
    refuse(
        capsys, ["export", run, "--bundle", bench.directory / os.fsdecode(b"b\xe9")], "b\\xe9: the path is not UTF-8"
    )
