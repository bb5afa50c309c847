"""Pruned runs hold what the published rule leaves; `tests/training/prototypes/test_thinning.py` tests the rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from training import running
from training.config import Config, parse_config
from training.loop.trainer import Trainer


def train(config: Config, data: Path, run: Path, resume: bool = False) -> None:
    quiet = Console(stderr=True, quiet=True)
    running.train(config, data, run, linear=False, resume=resume, device="cpu", console=quiet)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_a_pruned_run_holds_what_the_rule_keeps_and_resumes_after_a_kill(
    kind: str, counting_settings: dict[str, Any], awkward_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**counting_settings, "prototypes": {}, "prune": {"enabled": True, "nearest": 6, "at_least": 6}}
    settings["model"] = {**settings["model"], "kind": kind, "prototypes_per_child": 4}
    config = parse_config(settings, "test")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, awkward_data, whole)

    def die(trainer: Trainer) -> dict[str, float]:
        raise KeyboardInterrupt

    for stage in ("prune", "analyse"):
        with monkeypatch.context() as patched:
            patched.setitem(running.STAGES, stage, die)
            with pytest.raises(KeyboardInterrupt):
                train(config, awkward_data, killed, resume=True)
    train(config, awkward_data, killed, resume=True)

    expected, found = (torch.load(run / "model.pt", weights_only=True) for run in (whole, killed))
    assert found["description"] == expected["description"]
    assert found["sources"] == expected["sources"]
    assert all(torch.equal(found["state"][name], tensor) for name, tensor in expected["state"].items())
    assert (killed / "analysis.json").read_text() == (whole / "analysis.json").read_text()

    network, description, sources = load_network(whole / "model.pt")
    assert isinstance(network, PrototypeNetwork) and sources is not None
    analysis, metrics = (json.loads((whole / f"{name}.json").read_text()) for name in ("analysis", "metrics"))
    numbers = metrics["prune"]["prototypes"]
    assert numbers["after"] < numbers["before"] == 4 * len(set(description.prototype_child))
    assert len(network.head.prototypes) == len(sources) == len(analysis["prototypes"]) == numbers["after"]
    children = [prototype["child"] for prototype in analysis["prototypes"]]
    for prototype in analysis["prototypes"]:
        assert prototype["purity"]["own"] == 6 or children.count(prototype["child"]) == 1
    # The record of the projection went along: each prototype still is the cell that it is said to be cut from.
    for prototype, source in zip(analysis["prototypes"], sources, strict=True):
        assert prototype["patches"][0]["distance"] == pytest.approx(0.0, abs=1e-10)
        same = [patch for patch in prototype["patches"] if patch["distance"] < 1e-10]
        assert (source.image, list(source.box)) in [(patch["image"], patch["box"]) for patch in same]
