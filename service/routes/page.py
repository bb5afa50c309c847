"""The page at `/`: one HTML file, and a content policy that allows only its own script and style."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

_FILE: Final = Path(__file__).with_name("page.html")


@cache
def page() -> tuple[str, str]:
    """Return the page's HTML and its Content-Security-Policy, which allows the inline script and style by hash."""
    html = _FILE.read_text(encoding="utf-8")
    script, style = (_hash(html, element) for element in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return html, policy


def _hash(html: str, element: str) -> str:
    [content] = re.findall(rf"<{element}>(.*?)</{element}>", html, flags=re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
