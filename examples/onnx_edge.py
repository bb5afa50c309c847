"""Predict a picture with one exported file, using only onnxruntime, numpy and Pillow (to decode).

python examples/onnx_edge.py model.int8.onnx PHOTO.jpg      (or any other .onnx or .ort file of a bundle)
"""

import json
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported
import onnxruntime


def weights(length: int, part: float, size: int, target: int) -> NDArray[np.float64]:
    """[target, length]: an antialiased triangle filter that maps the centre `part` of an axis to `size` centred
    pixels."""
    place = np.arange(target) - (target - size) // 2
    scale = part / size
    centre = (length - part) / 2 + (place + 0.5) * scale
    rows: NDArray[np.float64] = np.maximum(1 - np.abs(np.arange(length) + 0.5 - centre[:, None]) / max(scale, 1), 0)
    rows /= np.maximum(rows.sum(1, keepdims=True), 1e-9)
    return rows * ((place >= 0) & (place < size))[:, None]


def fit(picture: NDArray[np.uint8], rule: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to uint8 [rule height, rule width, 3] by the rule in the metadata of the file."""
    (height, width), (rows, columns) = picture.shape[:2], (rule["height"], rule["width"])
    down, across, size = height, width, [rows, columns]
    if rule["resize"] == "crop":
        down, across = min(height, width * rows / columns), min(width, height * columns / rows)
        down, across = down * rule["share"], across * rule["share"]
    elif rule["resize"] == "pad":
        wider = width * rows >= height * columns
        part = (2 * height * columns + width) // (2 * width) if wider else (2 * width * rows + height) // (2 * height)
        size[0 if wider else 1] = max(1, part)
    narrow = np.floor(np.einsum("xw,hwc->hxc", weights(width, across, size[1], columns), picture) + 0.5)
    fitted = np.floor(np.einsum("yh,hxc->yxc", weights(height, down, size[0], rows), narrow) + 0.5)
    grey = np.full((rows, columns, 3), (124, 116, 104), dtype=np.uint8)
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    inside = np.s_[top : top + size[0], left : left + size[1]]
    grey[inside] = fitted[inside].clip(0, 255)
    return grey


def shown(name: str) -> str:
    """A name from the file, with escapes in place of what a terminal would obey or its encoding lacks."""
    seen = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
    return seen.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
assert session.get_providers() == ["CPUExecutionProvider"]
stored = session.get_modelmeta().custom_metadata_map
model, nodes, options = json.loads(stored["protoserve"]), stored["nodes"].split("\n"), json.loads(stored["options"])
picture = np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB"))
image = picture if options["resize_in_graph"] else fit(picture, model["input"])
outputs = [output.name for output in session.get_outputs()]
answer = dict(zip(outputs, session.run(None, {"image": np.repeat(image[None], options["batch"] or 1, 0)}), strict=True))
for level, node in enumerate(node for node in answer["path"][0] if node >= 0):
    print(f"{np.exp(answer['log_probability'][0, node]):6.1%}  {shown(nodes[node])}")
    logit, prior = answer["logit"][0, node], model["prior"].get(nodes[node], 0.0)
    rest = logit - prior
    for kind, sign in (("evidence", 1), ("against", -1)):
        for place, prototype in enumerate(answer[f"{kind}_prototype"][0, level, :3]):
            added = answer[f"{kind}_contribution"][0, level, place]
            if prototype >= 0 and added * sign > 0:
                rest, source = rest - added, model["prototypes"]["source_image"][prototype]
                print(f"        {added:+.3f} prototype {prototype}, from {shown(source)}")
    print(f"        {prior:+.3f} prior, {rest:+.3f} rest: score {logit:.3f}")
