"""Copies of a bundle that pass for another model, or whose model never answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from protoserve.bundle.folder import read_bundle, write_bundle, write_manifest


def rename_bundle(bundle: Path, copy: Path, name: str | None = None) -> Path:
    """Copy a bundle under another name (by default the folder's), with a version and sums that fit."""
    name = name or copy.name
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"name": name, "version": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    correct_sum(copy, "manifest.json")
    return copy


def with_samples(bundle: Path, directory: Path, pictures: Sequence[bytes]) -> Path:
    """Copy a bundle, with sample pictures."""
    before = read_bundle(bundle)
    with write_bundle(directory) as draft:
        shutil.copytree(bundle, draft, dirs_exist_ok=True)
        for name in ("manifest.json", "SHA256SUMS"):
            (draft / name).unlink()
        (draft / "samples").mkdir()
        names = [f"samples/{number}.png" for number in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            (draft / name).write_bytes(picture)
        changes = {"samples": names}
        write_manifest(draft, lambda version: before.manifest.model_copy(update={**changes, "version": version}))
    return directory


def correct_sum(bundle: Path, name: str) -> None:
    """Make the checksum of a changed file fit."""
    digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    sums = [f"{digest}  {name}" if line.endswith(f"  {name}") else line for line in lines]
    (bundle / "SHA256SUMS").write_text("\n".join(sums) + "\n")


def endless_bundle(bundle: Path, copy: Path) -> Path:
    """Copy a bundle with a graph that is valid and never ends: its logits wait for a loop without a condition."""
    import onnx
    from onnx import TensorProto, helper

    rename_bundle(bundle, copy)
    model = onnx.load(copy / "model.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["logit_before" if name == "logit" else name for name in node.output]
        node.input[:] = ["logit_before" if name == "logit" else name for name in node.input]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
    )
    graph.initializer.append(helper.make_tensor("forever", TensorProto.BOOL, [], [True]))
    graph.node.extend(
        [
            # It depends on the image, so that no optimiser computes it when the graph is loaded.
            helper.make_node("Cast", ["image"], ["image_as_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["image_as_float"], ["start"], keepdims=0),
            helper.make_node("Loop", ["", "forever", "start"], ["end"], body=body),
            helper.make_node("Add", ["logit_before", "end"], ["logit"]),
        ]
    )
    onnx.save(model, copy / "model.onnx")
    correct_sum(copy, "model.onnx")
    return copy
