"""Mistakes in the commands that make data sets, runs and bundles: one clear line, exit code 2, never a traceback.

The commands run in this process, through the same `main` as on the command line: an error that is not meant for people
leaves it as the exception that it is and fails the test. `predict`, `explain`, `inspect`, `serve` and `publish` are
tested beside their rooms.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protoserve.cli.root import main
from protoserve.networks.model_file import NetworkDescription, build, save_network
from tests.e2e.bench import Bench, refuse, training

SMALL = b"""
name: small
image: {height: 8, width: 8, resize: stretch}
model: {backbone: squeezenet1_1, weights: null, reduced: null}
"""


Case = tuple[Callable[[Bench], list[str | Path]], str]


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
    "no configuration": (lambda b: training(b, config=b.directory / "gone.yaml"), "neither a configuration file nor a"),
    "a folder as configuration": (lambda b: training(b, config=b.directory), "neither a configuration file nor a"),
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
        "a run's whole network; give the run's folder",
    ),
    "no data": (lambda b: ["train", b.config, "--data", b.directory / "gone", "--run", b.directory / "new"], "no such"),
    "a file as data": (lambda b: ["train", b.config, "--data", b.config, "--run", b.directory / "new"], "no such"),
    "no train split": (lambda b: training(without(b, "train")), "holds no folder 'train'"),
    "a leaf without pictures": (
        lambda b: training(without(b, "train/Scuba/0.png", "train/Scuba/1.png")),
        "leaf 'Scuba' has no images",
    ),
    "pictures beside folders": (lambda b: training(stray_picture(b, "train/stray.png")), "holds images directly"),
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
    "a run": (lambda b: ["validate", b.run, "--data", b.data], "is a run, not a bundle"),
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
