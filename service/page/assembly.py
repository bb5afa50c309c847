"""Put the page at `/` together: one HTML file, and a content policy that allows only its own script and style.

The script is written as modules, which Node can import and test one by one. They are served in one inline script:
a reverse proxy may show the page below a prefix without a slash at its end, where addresses of files beside it would
lead elsewhere.
"""

from __future__ import annotations

import gzip
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from service.page.shortening import shortened

FOLDER: Final = Path(__file__).parent
MODULES: Final = (
    "geometry",
    "heat",
    "words",
    "state",
    "service",
    "picture",
    "evidence",
    "acting",
    "answer",
    "share",
    "upload",
    "prototypes",
    "main",
)
"""The modules in an order in which each one imports only earlier ones."""

_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.mjs";\n', flags=re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """The page's HTML in UTF-8, the same compressed by gzip, and its Content-Security-Policy."""

    html: bytes
    compressed: bytes
    policy: str


@cache
def page() -> Page:
    """Put the page together; its policy allows the inline script and style by hash."""
    style = _compact_style(_read("style.css"))
    script = shortened(script_of(MODULES))
    html = _compact(_read("index.html")).replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    content = html.encode()
    return Page(content, gzip.compress(content, mtime=0), policy)


def script_of(modules: tuple[str, ...]) -> str:
    """Modules as one script."""
    return "".join(_in_one_scope(_read(f"{name}.mjs")) for name in modules)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _in_one_scope(module: str) -> str:
    """Remove a module's imports and exports: in one script, all names are in one scope."""
    return re.sub(r"^export ", "", _IMPORT.sub("", module), flags=re.MULTILINE)


def _compact(text: str) -> str:
    """Remove comments that fill their lines, blank lines and indentation, a quarter of the page. No text of the page
    spans lines."""
    without_comments = re.sub(r"^\s*(?://.*|/\*\*.*?\*/)\n", "", text, flags=re.MULTILINE)
    without_comments = re.sub(r"^\s*/\*\*\n(?:\s*\*.*\n)+", "", without_comments, flags=re.MULTILINE)
    return re.sub(r"^\s+", "", without_comments, flags=re.MULTILINE)


def _compact_style(text: str) -> str:
    """Remove the spaces that a style does not need."""
    return re.sub(r"\s*([{};,>])\s*|(:) ", r"\1\2", _compact(text)).replace(";}", "}")


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
