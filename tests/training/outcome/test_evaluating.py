"""Scores of a finished run's network, beside its answers one picture at a time, and on images of unknown classes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from protoserve.bundle.folder import read_bundle, rewrite_manifest
from protoserve.cli.root import build_app
from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.data.novel import read_novel
from protoserve.errors import InputError
from protoserve.images.fitting import fit
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.novelty import SCORES
from protoserve.run.folder import Run, open_run
from protoserve.taxonomy import ROOT
from tests.truth_cards import truth_card
from training.outcome.evaluating import evaluate


def document_of(run: Path, data: Path, split: str, novel: Path | None = None) -> dict[str, Any]:
    return evaluate(run, data, split, novel=novel, device="cpu", console=Console(quiet=True)).model_dump()


def test_accuracy_and_likelihood_are_those_of_the_network_picture_by_picture(
    counted_run: Path, awkward_data: Path
) -> None:
    network, description, _ = load_network(Run(counted_run).model)
    assert isinstance(network, PrototypeNetwork)
    dataset = read_split(awkward_data, "train", read_taxonomy(awkward_data))
    right, likelihood = [], []
    for number, leaf in enumerate(dataset.leaves.tolist()):
        pixels = torch.from_numpy(fit(dataset.picture(number), description.input).array[None])
        with torch.inference_mode():
            leaves = network(pixels).log_probability[0, list(dataset.taxonomy.leaves)]
        right.append(int(leaves.argmax()) == leaf)
        likelihood.append(float(leaves[leaf]))
    found = document_of(counted_run, awkward_data, "train")
    assert found["images"] == len(dataset)
    assert found["accuracy"]["leaf"] == np.mean(right)
    assert found["negative_log_likelihood"]["leaf"] == pytest.approx(-np.mean(likelihood), rel=1e-5)
    assert found["seconds"] > 0 and "novel" not in found


def test_a_split_of_other_classes_is_refused(counted_run: Path, rendered_data: Path) -> None:
    with pytest.raises(InputError, match="the taxonomy has no leaf"):
        document_of(counted_run, rendered_data, "test")


def test_folders_read_as_another_leaf_are_noted(counted_run: Path, awkward_data: Path, tmp_path: Path) -> None:
    shutil.copytree(awkward_data / "test", tmp_path / "test")
    (tmp_path / "test" / "$_{2$").rename(tmp_path / "moved")
    (tmp_path / "test" / "Only").mkdir()
    (tmp_path / "moved").rename(tmp_path / "test" / "Only" / "$_{2$")
    console = Console(file=io.StringIO(), width=40)
    found = evaluate(counted_run, tmp_path, "test", device="cpu", console=console).model_dump()
    assert isinstance(console.file, io.StringIO)
    assert "note: test/Only/$_{2$ is read as the leaf $_{2$\n" in console.file.getvalue()
    expected = document_of(counted_run, awkward_data, "test")
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


# ---- images of classes that the run left out -------------------------------------------------------------------------


def test_evaluate_reports_on_the_left_out_leaves(
    left_out_run: Path, rendered_data: Path, left_out: tuple[str, ...]
) -> None:
    data = str(rendered_data)
    command = ["evaluate", str(left_out_run), "--data", data, "--split", "test", "--novel", data, "--device", "cpu"]
    ended = CliRunner().invoke(build_app(), [*command, "--json"], catch_exceptions=False)
    document = json.loads(ended.stdout)
    novel = document.pop("novel")
    document.pop("seconds")
    assert document.pop("passed_over") == {}
    recorded = json.loads((left_out_run / "metrics.json").read_text())["promise"]["test"]
    promise = document.pop("promise")
    rounds = {stated: scores.pop("resplits")["rounds"] for stated, scores in promise.items()}
    assert promise == recorded and set(rounds.values()) == {100}
    assert document == json.loads((left_out_run / "metrics.json").read_text())["test"]
    whole = read_taxonomy(rendered_data)
    test = read_split(rendered_data, "test", whole)
    images = sum(image.startswith(f"test/{leaf}/") for image in test.images for leaf in left_out)
    assert novel["images"] == images and novel["passed_over"] == len(test) - images
    # Where one of two siblings is left, it is certain: its parent has no scores.
    parents = {leaf.rpartition("/")[0] for leaf in left_out}
    taxonomy = whole.without(left_out)
    scored = {parent for parent in parents if len(taxonomy.children_of(taxonomy.index[parent])) > 1}
    assert set(novel["parents"]) == scored and 0 < len(scored) < len(parents)
    assert novel["undecided"] == images // 2
    for found in novel["parents"].values():
        assert set(found["scores"]) == set(SCORES)
        assert all(0.0 <= score["auroc"] <= 1.0 for score in found["scores"].values())
    readable = CliRunner().invoke(build_app(), command, catch_exceptions=False).stdout
    for expected in (
        "calibration error",
        "hierarchical precision",
        "novel images: AUROC",
        "under the right node of level 1",
    ):
        assert expected in readable


def test_the_runs_own_thresholds_decide_on_novel_images(
    left_out_run: Path, rendered_data: Path, left_out: tuple[str, ...]
) -> None:
    """`rejected`, from the head's outputs for one novel image at a time: `support`, by its definition."""
    network, description, _ = load_network(Run(left_out_run).model)
    assert isinstance(network, PrototypeNetwork)
    head = network.head
    recorded = open_run(left_out_run).metrics().novelty
    assert recorded is not None and recorded.score == "support"
    images = read_novel(rendered_data, "test", head.taxonomy, dict.fromkeys(left_out, ""))
    rejected: dict[str, list[bool]] = {}
    for number, ancestor in enumerate(images.ancestor.tolist()):
        assert ancestor != ROOT
        children = list(head.taxonomy.children_of(ancestor))
        if len(children) < 2:
            continue
        with torch.inference_mode():
            output = network(torch.from_numpy(fit(images.picture(number), description.input).array[None]))
        group = [group.parent for group in head.taxonomy.groups].index(ancestor)
        best = int(output.group_logits[0, group, : len(children)].argmax())
        own = float(output.similarity[0][head.grouping.prototype_child == children[best]].double().mean())
        conditional = output.log_probability[0, children].double().softmax(0)
        parent = head.taxonomy.names[ancestor]
        support = own * float(conditional.max())
        rejected.setdefault(parent, []).append(support < recorded.thresholds[parent])
    found = document_of(left_out_run, rendered_data, "test", novel=rendered_data)["novel"]["parents"]
    assert {parent: entry["rejected"] for parent, entry in found.items()} == {
        parent: np.mean(shares) for parent, shares in rejected.items()
    }


def test_evaluate_needs_something_novel(
    left_out_run: Path, rendered_data: Path, left_out: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(rendered_data / "test" / "Vehicle", tmp_path / "Vehicle")
    for leaf in left_out:
        shutil.rmtree(tmp_path / leaf, ignore_errors=True)
    with pytest.raises(InputError, match="no image of a class that the taxonomy lacks"):
        document_of(left_out_run, rendered_data, "test", novel=tmp_path)


def test_pictures_of_an_inner_node_count_down_to_there(small_run: Path, small_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_data / "test", data / "test")
    for picture in sorted((data / "test" / "A" / "y").iterdir()):
        picture.rename(data / "test" / "A" / picture.name)
    whole, part = document_of(small_run, small_data, "test"), document_of(small_run, data, "test")
    assert (part["images"], part["inner"], part["passed_over"]) == (9, 3, {})
    assert part["accuracy"]["level_1"] == whole["accuracy"]["level_1"]
    assert part["siblings"]["A"]["images"] == 3 and part["siblings"][""] == whole["siblings"][""]
    # The promise is about whole paths.
    assert part["promise"]["0.9"]["images"] == 6


def test_the_truth_card_of_the_runs_bundle_is_told(
    counted_run: Path, awkward_data: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    command = ["evaluate", str(counted_run), "--data", str(awkward_data), "--device", "cpu"]
    without = CliRunner().invoke(build_app(), command)
    assert without.exit_code == 0 and "then this command with --bundle BUNDLE" in without.stderr
    stranger = CliRunner().invoke(build_app(), [*command, "--bundle", str(tiny_bundle)])
    assert stranger.exit_code == 2 and f"was not exported from {counted_run}" in stranger.stderr.replace("\n", "")
    copy = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    opened = rewrite_manifest(read_bundle(copy), provenance=open_run(counted_run).provenance())
    told = CliRunner().invoke(build_app(), [*command, "--bundle", str(copy)])
    assert told.exit_code == 0 and "evidence not audited; run 'protoserve audit" in told.stdout
    rewrite_manifest(opened, truth=truth_card())
    told = CliRunner().invoke(build_app(), [*command, "--bundle", str(copy)])
    assert "1 of 2 checks hold; not: local (level 1)" in told.stdout
    shown = CliRunner().invoke(build_app(), [*command, "--bundle", str(copy), "--json"])
    assert json.loads(shown.stdout)["truth"]["seed"] == 0


def test_a_bundle_is_scored_by_another_command(tiny_bundle: Path, awkward_data: Path) -> None:
    with pytest.raises(InputError, match="is a bundle; score it with 'protoserve validate"):
        document_of(tiny_bundle, awkward_data, "test")
