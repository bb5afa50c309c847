"""The metadata in the file of a target, read as its host reads it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch

from export.targets import executorch_files, litert_files

NAMES = ("protoserve", "nodes", "options")


def stored_in(target: str, file: Path) -> dict[str, str]:
    """The texts `protoserve`, `nodes` and `options` of a target's file."""
    extra = dict.fromkeys(NAMES, "")
    if target == "torchscript":
        texts: dict[str, str | bytes] = {**extra}
        torch.jit.load(str(file), _extra_files=texts)
        return {name: text if isinstance(text, str) else text.decode() for name, text in texts.items()}
    if target == "torch-export":
        torch.export.load(str(file), extra_files=extra)
        return extra
    if target == "openvino":
        import openvino

        model = openvino.Core().read_model(str(file))
        return {name: model.get_rt_info(name).astype(str) for name in NAMES}
    if target == "executorch":
        return {name: executorch_files.stored_text(file, name) for name in NAMES}
    if target == "litert":
        return {name: litert_files.stored_text(file, name) for name in NAMES}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)
