"""Pruning: the published rule by hand, and a smaller head that answers like the larger one without those weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.model_file import load_network
from protoserve.networks.similarity import Similarity
from protoserve.taxonomy import Taxonomy
from training import running
from training.config import parse_config
from training.prototypes.thinning import class_sizes, pure_prototypes, smaller_head

TAXONOMY = Taxonomy.from_paths(["A/B/x", "A/B/y", "A/z", "Q"])


@pytest.mark.parametrize(
    ("own", "child", "size", "kept"),
    [
        ([6, 3, 2, 0], [4, 4, 4, 4], [9, 9, 9, 9], [0, 1]),
        # The purest of a child stays, the first of equals.
        ([1, 2, 2, 5], [4, 4, 4, 7], [9, 9, 9, 9], [1, 3]),
        ([0, 0, 6, 6], [4, 4, 7, 7], [9, 9, 9, 9], [0, 2, 3]),
        # Two images can't give three patches.
        ([2, 1, 2, 2], [4, 4, 7, 7], [2, 2, 9, 9], [0, 2]),
    ],
)
def test_a_prototype_goes_when_fewer_than_three_of_its_nearest_patches_are_its_own(
    own: list[int], child: list[int], size: list[int], kept: list[int]
) -> None:
    found = pure_prototypes(np.array(own), np.array(child), np.array(size), at_least=3)
    assert found.tolist() == kept


def test_the_size_of_a_class_counts_all_images_below_its_child() -> None:
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, "hierarchical", 1), 4)
    # Leaves in node order: Q, A/z, A/B/x, A/B/y.
    assert [TAXONOMY.names[leaf] for leaf in TAXONOMY.leaves] == ["Q", "A/z", "A/B/x", "A/B/y"]
    found = class_sizes(head, np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3]))
    names = [TAXONOMY.names[child] for child in head.grouping.prototype_child]
    assert dict(zip(names, found.tolist(), strict=True)) == {
        "A": 9, "Q": 1, "A/B": 7, "A/z": 2, "A/B/x": 3, "A/B/y": 4
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("form", ["log1p", "log-ratio", "cosine"])
def test_a_smaller_head_answers_like_the_larger_one_with_zeroed_weights(kind: str, form: str) -> None:
    torch.manual_seed(1)
    similarity = Similarity(form, epsilon=0.01)
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, kind, 3, 2), 6, kind=kind, similarity=similarity)
    with torch.no_grad():
        head.weight.normal_()
        head.temperature.uniform_(0.5, 2.0)
        head.centre.uniform_()
    head.eval()
    children = head.grouping.prototype_child.numpy()
    # One of each child, and some more.
    kept = np.sort(np.append(np.unique(children, return_index=True)[1], [1, len(children) - 1]))
    smaller = smaller_head(head, kept)
    latent = torch.rand(7, 6, 3, 4)
    with torch.no_grad():
        for number in set(range(len(children))) - set(kept.tolist()):
            head.weight[head.grouping.prototype_group[number], :, head.grouping.prototype_slot[number]] = 0.0
        expected, found = head(latent), smaller(latent)
    assert not smaller.training
    assert smaller.grouping.prototype_child.tolist() == children[kept].tolist()
    torch.testing.assert_close(found.group_logits, expected.group_logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_probability, expected.log_probability, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.similarity, expected.similarity[:, kept])
    assert torch.equal(found.cell, expected.cell[:, kept])


def test_no_child_may_lose_its_last_prototype() -> None:
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, "hierarchical", 1), 4)
    with pytest.raises(ValueError, match="no prototype of 'A/z' is kept"):
        smaller_head(head, np.array([0, 1, 2, 4, 5]))


# ---- runs ------------------------------------------------------------------------------------------------------------


def train(config, data, run, resume=False) -> None:
    quiet = Console(stderr=True, quiet=True)
    running.train(config, data, run, linear=False, resume=resume, device="cpu", console=quiet)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_a_pruned_run_holds_what_the_rule_leaves_and_goes_on_after_a_kill(
    kind: str, counting_settings, awkward_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**counting_settings, "prototypes": {}, "prune": {"enabled": True, "nearest": 6, "at_least": 6}}
    settings["model"] = {**settings["model"], "kind": kind, "prototypes_per_child": 4}
    config = parse_config(settings, "test")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, awkward_data, whole)

    def die(trainer) -> None:
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
