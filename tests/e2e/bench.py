"""Small valid inputs of every command, which tests damage or use where the machine refuses something."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.cli.root import main

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


def make_bench(tmp_path: Path, tiny_run: Path, tiny_bundle: Path) -> Bench:
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


def training(bench: Bench, *more: str | Path, config: Path | None = None, run: Path | None = None) -> list[str | Path]:
    target = bench.directory / "new" if run is None else run
    chosen = bench.config if config is None else config
    return ["train", chosen, "--data", bench.data, "--run", target, "--device", "cpu", *more]
