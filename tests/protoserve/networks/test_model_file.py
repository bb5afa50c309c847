"""Networks in files: they come back the same, and files that are torn, foreign or dangerous are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protoserve.errors import InputError
from protoserve.networks.model_file import NetworkDescription, build, load_network, save_network, save_whole
from protoserve.networks.network import PrototypeNetwork


def test_a_network_survives_the_file(tiny_run: Path, tmp_path: Path) -> None:
    network, description, sources = load_network(tiny_run / "model.pt")
    save_network(tmp_path / "model.pt", network, description, sources)
    again, described, sourced = load_network(tmp_path / "model.pt")
    assert (described, sourced) == (description, sources)
    assert isinstance(again, PrototypeNetwork)
    pictures = torch.randint(0, 255, (2, 64, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(again(pictures).log_probability, network(pictures).log_probability)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_a_network_may_start_from_the_backbone_of_a_run(tiny_run: Path) -> None:
    network, description, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    linear = NetworkDescription(
        kind="linear", taxonomy=description.taxonomy, input=description.input, backbone=description.backbone
    )
    started = build(linear.model_copy(update={"stride": description.stride}), tiny_run)
    expected, found = network.backbone.state_dict(), started.backbone.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_a_run_with_another_backbone_is_refused(tiny_run: Path) -> None:
    _, description, _ = load_network(tiny_run / "model.pt")
    other = "squeezenet1_1" if description.backbone != "squeezenet1_1" else "resnet18"
    with pytest.raises(InputError, match=f"this run's backbone is {description.backbone}, not {other}"):
        build(description.model_copy(update={"backbone": other, "stride": None}), tiny_run)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04torn", b"text"])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match="can't read the checkpoint"):
        load_network(tmp_path / "model.pt")


def test_a_missing_newer_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_network(tmp_path / "model.pt")
    save_whole({"format": 2}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="format 2 is newer than 1"):
        load_network(tmp_path / "model.pt")
    save_whole({"state_dict": {}}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a checkpoint of ProtoServe"):
        load_network(tmp_path / "model.pt")


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (print, ("owned",))

    torch.save({"format": 1, "state": Evil()}, tmp_path / "model.pt", pickle_module=pickle)
    with pytest.raises(InputError, match="can't read the checkpoint"):
        load_network(tmp_path / "model.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    save_whole({"value": 1}, file)
    with pytest.raises(AttributeError, match="lambda"):
        save_whole({"value": lambda: None}, file)
    assert torch.load(file, weights_only=True) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]
