"""The documentation site: every link is true, and its references have all commands, routes and documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.site import commands_page, http_page, site_links
from service.contract.openapi import openapi_document
from tests.test_documents import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_it_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {file.relative_to(tmp_path / "site").as_posix() for file in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "reference/commands.html", "reference/http.html", "measurements/grocery.html"} <= pages
    python = (tmp_path / "site/reference/python.html").read_text(encoding="utf-8")
    for name in ("protoserve.load", "protoserve.Classifier.predict", "protoserve.client.AsyncClient.predict"):
        assert f'id="{name}"' in python
    # The site asks no other host for anything.
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert 'src="http' not in home and "fonts.g" not in home


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("training.md", "[a](acting.md#lists)", "[a](acting.md#lists)"),
        ("training.md", "[a](../benchmarks/results/promise.md)", "[a](measurements/promise.md)"),
        ("training.md", "[the script](../scripts/demo.sh)", "the script (`scripts/demo.sh`)"),
        ("training.md", "[scripts/demo.sh](../scripts/demo.sh)", "`scripts/demo.sh`"),
        ("training.md", "[a](https://arxiv.org) [b](#tiles)", "[a](https://arxiv.org) [b](#tiles)"),
        ("training.md", "![a figure](explain.webp)", "![a figure](explain.webp)"),
        ("training.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("decisions/0002-batching.md", "[a](../serving.md)", "[a](../serving.md)"),
        ("reference/changes.md", "[a](docs/acting.md)", "[a](../acting.md)"),
        ("measurements/promise.md", "[a](../../docs/method.md)", "[a](../method.md)"),
    ],
)  # fmt: skip
def test_links_lead_to_the_site_and_else_become_names(page: str, written: str, shown: str) -> None:
    assert site_links(written, page) == shown


def sections(page: str, mark: str) -> dict[str, str]:
    """Title → text of the sections whose titles start with `mark`."""
    return {part.partition("\n")[0]: part for part in f"\n{page}".split(f"\n{mark} ")[1:]}


def test_the_reference_has_every_command_with_its_options() -> None:
    told = sections(commands_page(), "##")
    assert told.keys() == {f"protoserve {words}" for words in COMMANDS}
    for words, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}`" in told[f"protoserve {words}"]


def test_the_reference_has_every_route_and_document() -> None:
    told, document = sections(http_page(), "###"), openapi_document()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            section = told[f"{method.upper()} {path}"]
            assert all(f"| `{parameter['name']}` |" in section for parameter in operation.get("parameters", ()))
            assert all(f"| `{code}` |" in section for code in operation["responses"])
    for name, schema in document["components"]["schemas"].items():
        assert all(f"| `{field}` |" in told[name] for field in schema.get("properties", ()))
