"""Two processes that train one network end where one process ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protoserve.cli.root import main
from training.rendered import render_dataset

pytestmark = pytest.mark.slow

CONFIG = """
name: tiny
batch: 16
image: {height: 32, width: 32, resize: stretch}
model: {backbone: shufflenet_v2_x0_5, weights: null, stride: 8, dimensions: 16, prototypes_per_child: 2, reduced: 24,
  dropout: 0}
precision: float32  # bfloat16 would hide small differences
data: {hold_out: 0.25, views: 3}
start: {share: 0.5}
loss: {outside: 0.5, leaf: 0.2, distillation: 0.5}
finetune: {epochs: 1, batch_norm: fixed, train_from: stage2.2}
warm: {epochs: 1}
joint: {epochs: 2, project_every: 1}
last_layers: {epochs: 2}
"""


@pytest.fixture(scope="module")
def runs(forkserver: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The run of one process and that of two that `torchrun` started."""
    folder = tmp_path_factory.mktemp("distributed")
    render_dataset(folder / "data", per_leaf=4, size=64)
    (folder / "tiny.yaml").write_text(CONFIG)
    options = [str(folder / "tiny.yaml"), "--data", str(folder / "data"), "--device", "cpu"]
    alone = forkserver.Process(target=main, args=(["train", *options, "--run", str(folder / "1")],))
    alone.start()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "training", "--", *options, "--run", str(folder / "2")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    # One process alone prints.
    assert done.stdout.count("selection ") == 1
    alone.join(timeout=300)
    assert alone.exitcode == 0
    return {count: folder / str(count) for count in (1, 2)}


def column(run: Path, name: str) -> np.ndarray[Any, Any]:
    import csv

    with (run / "history.csv").open() as stream:
        return np.array([float(row[name]) for row in csv.DictReader(stream) if row.get(name)])


def test_two_processes_learn_what_one_does(runs: dict[int, Path]) -> None:
    # Both see the same batches of the same views; only the order of sums differs.
    for name in ("loss", "cross_entropy", "cluster", "mean_distance", "temperature"):
        np.testing.assert_allclose(column(runs[2], name), column(runs[1], name), rtol=1e-3, atol=1e-5, err_msg=name)
    metrics = [json.loads((runs[count] / "metrics.json").read_text()) for count in (1, 2)]
    for split in ("selection", "test"):
        one, two = (found[split]["accuracy"] for found in metrics)
        assert one.keys() == two.keys()
        # One of 16 images may lie on the decision boundary.
        assert all(abs(one[level] - two[level]) <= 1 / 16 for level in one)


def test_only_the_finished_run_is_left(runs: dict[int, Path]) -> None:
    names = [{file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()} for run in runs.values()]
    assert {name for name in names[0] if not name.startswith(("prototypes", "patches"))} == {
        name for name in names[1] if not name.startswith(("prototypes", "patches"))
    }
    assert not [name for name in names[1] if "process" in name or "cache" in name]


# ---- the exchange itself ---------------------------------------------------------------------------------------------


def exchange(rank: int, count: int, port: int, folder: str) -> None:
    """The work of one of several processes: its part of a projection, a gradient and a table."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from training.processes import joined_processes
    from training.prototypes.projection import nearest_of_all, search

    with joined_processes(cuda=False) as processes:
        head, latent, leaves, numbers = problem()
        own = torch.arange(len(latent))[processes.stripe(len(latent))]
        found = nearest_of_all(processes, search(head, [(own, leaves[own], latent[own])]))

        weight = torch.nn.Parameter(torch.ones(3))
        unused = torch.nn.Parameter(torch.ones(2))
        images, counts = processes.share(numbers)
        (weight * latent[images].mean((0, 2, 3))[:3]).sum().backward()
        processes.average_gradients([weight, unused], counts)

        rows = torch.arange(7.0)[:, None].repeat(1, 2)
        joined = processes.joined(rows[processes.stripe(7)], 7)
        means = torch.full((2,), float(rank))
        processes.average([means, torch.tensor([1, 2])])
        total = processes.total({"loss": 1.0 + rank, "count": 2.0})
        content = {
            "projection": dict(found._asdict()),
            "gradients": [weight.grad, unused.grad],
            "joined": joined,
            "means": means,
            "total": total,
        }
        torch.save(content, Path(folder) / f"{rank}.pt")


def problem() -> tuple[Any, torch.Tensor, torch.Tensor, np.ndarray[Any, Any]]:
    """A head, latent maps with ties across the border between two processes, their leaves, and a batch of them."""
    from protoserve.networks.head import PrototypeHead, prototype_children
    from protoserve.taxonomy import Taxonomy

    taxonomy = Taxonomy.from_paths(("A/x", "A/y", "B"))
    torch.manual_seed(0)
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 3), 5)
    latent = torch.rand(21, 5, 3, 4)
    latent[18] = latent[3]
    latent[20, :, 1, 1] = latent[2, :, 0, 2]
    return head, latent, torch.arange(21) % 3, np.random.default_rng(0).permutation(21)[:9]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_exchange_to_the_result_of_one(count: int, forkserver: ForkServerContext, tmp_path: Path) -> None:
    from training.prototypes.projection import complete, search

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [forkserver.Process(target=exchange, args=(rank, count, port, str(tmp_path))) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0

    head, latent, leaves, numbers = problem()
    whole = complete(head, search(head, [(torch.arange(21), leaves, latent)]))
    expected = latent[numbers].mean((0, 2, 3))[:3]
    for rank in range(count):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, values in whole._asdict().items():
            assert torch.equal(found["projection"][name], values), name
        torch.testing.assert_close(found["gradients"][0], expected)
        assert torch.equal(found["gradients"][1], torch.zeros(2))
        assert torch.equal(found["joined"], torch.arange(7.0)[:, None].repeat(1, 2))
        assert torch.equal(found["means"], torch.full((2,), (count - 1) / 2))
        assert found["total"] == {"loss": count + count * (count - 1) / 2, "count": 2.0 * count}
