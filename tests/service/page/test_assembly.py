"""The page at `/`, put together from its modules."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.page.assembly import FOLDER, MODULES, page
from tests.service.running import TestClient

MOST_BYTES = 60_000


def source(name: str) -> str:
    return (FOLDER / f"{name}.mjs").read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_other_hosts(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "://" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_policy_allows_the_inline_script_and_style_by_their_hashes() -> None:
    html, policy = page().html.decode(), page().policy
    for directive, element in (
        ("script-src", '<script type="module">(.*?)</script>'),
        ("style-src", "<style>(.*?)</style>"),
    ):
        [content] = re.findall(element, html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    # Inline handlers and style attributes would be blocked by this policy.
    assert not re.findall(r"\s(?:on\w+|style)=\"", html)


def test_every_address_on_the_page_is_relative() -> None:
    """A proxy may put a prefix before it."""
    assert not re.findall(r"""["'`]/[a-z]""", page().html.decode())
    asked = [found for module in MODULES for found in re.findall(r"fetch\(([^,)]+)", source(module))]
    assert asked == ["at(path"]


def test_the_page_is_small() -> None:
    assert len(page().compressed) <= 20_500
    assert len(page().html) <= MOST_BYTES


@pytest.mark.parametrize("encoding", ["gzip, br", "identity"])
def test_clients_that_accept_it_get_the_page_compressed(client: TestClient, encoding: str) -> None:
    response = client.get("/", headers={"accept-encoding": encoding})
    assert response.headers.get("content-encoding") == ("gzip" if "gzip" in encoding else None)
    assert response.headers["vary"] == "Accept-Encoding"
    assert response.content == page().html


def test_every_module_is_part_of_the_script_and_imports_only_earlier_ones() -> None:
    assert {file.stem for file in FOLDER.glob("*.mjs")} == set(MODULES)
    for index, name in enumerate(MODULES):
        imported = re.findall(r'from "\./(\w+)\.mjs"', source(name))
        assert set(imported) <= set(MODULES[:index]), name


def test_no_two_modules_have_a_name_in_common() -> None:
    """They share one scope on the page."""
    names = [
        name
        for module in MODULES
        for name in re.findall(
            r"^(?:export )?(?:async )?(?:const|let|function) (\w+)", source(module), flags=re.MULTILINE
        )
    ]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_what_a_module_imports_is_exported_and_used() -> None:
    for module in MODULES:
        text = source(module)
        for names, other in re.findall(r'^import \{ ([^}]*) \} from "\./(\w+)\.mjs";$', text, flags=re.MULTILINE):
            for name in map(re.escape, names.split(", ")):
                assert re.search(
                    rf"^export (?:async )?(?:const|function) {name}(?!\w)", source(other), flags=re.MULTILINE
                )
                assert len(re.findall(rf"(?<!\w){name}(?!\w)", text)) > 1, f"{module} does not use {name}"


def test_the_script_is_valid_and_without_comments(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    html = page().html.decode()
    [script] = re.findall('<script type="module">(.*?)</script>', html, flags=re.DOTALL)
    assert not re.findall(r"^(?:import|export) ", script, flags=re.MULTILINE)
    assert not re.findall(r"^(?://|/\*|\*)", script, flags=re.MULTILINE)
    (tmp_path / "page.mjs").write_text(script, encoding="utf-8")
    subprocess.run([node, "--check", str(tmp_path / "page.mjs")], check=True, timeout=60)
