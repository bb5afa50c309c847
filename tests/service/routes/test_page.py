"""The page at `/`."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from itertools import product

import numpy as np
import pytest

from protoserve.images.geometry import InputRule, geometry_of
from service.routes.page import page
from tests.service.running import TestClient


def test_the_page_loads_nothing_from_other_hosts(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "://" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_policy_allows_the_inline_script_and_style_by_their_hashes() -> None:
    html, policy = page()
    for element in ("script", "style"):
        [content] = re.findall(rf"<{element}>(.*?)</{element}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    # Inline handlers and style attributes would be blocked by this policy.
    assert not re.findall(r"\s(?:on\w+|style)=\"", html)


def test_every_address_on_the_page_is_relative() -> None:
    """A proxy may put a prefix before it."""
    html, _ = page()
    assert not re.findall(r"""["'`]/[a-z]""", html)
    asked = re.findall(r"fetch\(([^,)]+)", html)
    assert asked == ["at(path"]


RULES = [InputRule(height=96, width=64, resize=resize, share=0.875) for resize in ("stretch", "crop", "pad")]
SIZES = [(640, 480), (480, 640), (64, 96), (1000, 20), (21, 1000)]
# Side, step and start of the tiles, and how many rows and columns of them there are.
TILES = [(None, None, 0, 4, 4), (32, 32, 0, 3, 2), (32, 16, 0, 5, 3), (64, 16, 0, 3, 1), (19, 8, -9, 12, 8)]


def test_heat_maps_lie_where_the_model_saw_the_picture() -> None:
    """The centre of each cell, on the page, is the centre of its cell or tile in the sender's picture."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    html, _ = page()
    [function] = re.findall(r"^function mapRegion.*?^}", html, flags=re.DOTALL | re.MULTILINE)
    cases = list(product(RULES, SIZES, TILES))
    asked = [
        [
            {"tile": tile, "tile_step": step, "tile_start": first},
            rule.model_dump(),
            {"width": width, "height": height},
            rows,
            columns,
        ]
        for rule, (width, height), (tile, step, first, rows, columns) in cases
    ]
    script = f"{function}\nconsole.log(JSON.stringify({json.dumps(asked)}.map((one) => mapRegion(...one))));"
    printed = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True, timeout=60).stdout
    for (rule, (width, height), (tile, step, first, rows, columns)), region in zip(
        cases, json.loads(printed), strict=True
    ):
        geometry = geometry_of(width, height, rule)
        for axis, target, scale, offset, cells in (
            ("x", rule.width, geometry.scale_x, geometry.offset_x, columns),
            ("y", rule.height, geometry.scale_y, geometry.offset_y, rows),
        ):
            found = region[axis]
            start, length, before = found["start"], found["length"], found["before"]
            if tile is None or step is None:
                centres = [target * (cell + 0.5) / cells for cell in range(cells)]
            else:
                centres = [first + cell * step + tile / 2 for cell in range(cells)]
            drawn = before + cells + found["after"]
            assert np.allclose(found["seen"], [offset, scale * target])
            for cell, centre in enumerate(centres):
                placed = start + length * (cell + before + 0.5) / drawn
                assert math.isclose(placed, offset + scale * centre, abs_tol=1e-6), (rule.resize, width, tile, step)
            # Nothing that the model saw stays without a value.
            assert start <= offset + 1e-6 and start + length >= offset + scale * target - 1e-6
