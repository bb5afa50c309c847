"""Prototypes switched off in an ONNX file, against the network's own graph with the same prototypes off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.targets.onnx_files import run_onnx
from export.targets.onnx_switch import switch_off
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError


@pytest.fixture(scope="module", params=["tiny", "flat"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return read_bundle(request.getfixturevalue(f"{request.param}_bundle"))


@pytest.fixture(scope="module")
def pictures(tiny_run: Path) -> NDArray[np.uint8]:
    pictures: NDArray[np.uint8] = np.load(tiny_run / "samples.npy")[:4]
    return pictures


def usual(bundle: Bundle) -> NDArray[np.float32]:
    return np.array([record.usual for record in bundle.prototypes], dtype=np.float32)


def switched(bundle: Bundle, file: Path, *rounds: list[int]) -> Path:
    model = onnx.load(str(bundle.file("onnx")))
    for off in rounds:
        switch_off(model, off, usual(bundle))
    onnx.checker.check_model(model)
    onnx.save_model(model, str(file))
    return file


def test_what_is_off_has_its_usual_similarity_and_contributes_nothing(
    bundle: Bundle, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    old, new = (
        run_onnx(bundle.file("onnx"))(pictures),
        run_onnx(switched(bundle, tmp_path / "m.onnx", [1, 6]))(pictures),
    )
    assert (new["similarity"][:, [1, 6]] == usual(bundle)[[1, 6]]).all()
    others = [number for number in range(len(bundle.prototypes)) if number not in (1, 6)]
    assert (new["similarity"][:, others] == old["similarity"][:, others]).all()
    assert (new["cell"] == old["cell"]).all()
    for kind in ("evidence", "against"):
        off = np.isin(new[f"{kind}_prototype"], [1, 6])
        assert (new[f"{kind}_contribution"][off] == 0.0).all()
    assert not np.array_equal(new["logit"], old["logit"])


def test_switching_again_forgets_what_was_off_before(
    bundle: Bundle, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    once = run_onnx(switched(bundle, tmp_path / "a.onnx", [3]))(pictures)
    again = run_onnx(switched(bundle, tmp_path / "b.onnx", [1, 6], [3]))(pictures)
    back = run_onnx(switched(bundle, tmp_path / "c.onnx", [1, 6], []))(pictures)
    old = run_onnx(bundle.file("onnx"))(pictures)
    assert all((once[name] == again[name]).all() for name in once)
    assert all((back[name] == old[name]).all() for name in old)


def test_nothing_that_was_replaced_stays_in_the_file(bundle: Bundle, tmp_path: Path) -> None:
    file = switched(bundle, tmp_path / "c.onnx", [1, 6], [2], [])
    before, after = (
        sorted(tensor.name for tensor in onnx.load(str(name)).graph.initializer) for name in (bundle.file("onnx"), file)
    )
    assert after == before


def test_a_routed_graph_is_refused(edge: Bundle) -> None:
    with pytest.raises(InputError, match="no output 'similarity'"):
        switch_off(onnx.load(str(edge.file("onnx-routed"))), [1], usual(edge))
