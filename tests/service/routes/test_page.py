"""The page at `/`."""

from __future__ import annotations

import base64
import hashlib
import re

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
