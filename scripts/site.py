"""What the documentation site has beside the pages of docs/: references made from the code, and kept measurements.

MkDocs calls `on_files` and `on_page_markdown` (see mkdocs.yml). Links to files that the site does not have become their
names.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = "benchmarks/results"
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_METHODS: Final = ("get", "post", "put", "delete")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and every page of measurements as `measurements/NAME.md`."""
    from mkdocs.structure.files import File

    pages = {
        "reference/commands.md": commands_page(),
        "reference/http.md": http_page(),
        "reference/changes.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for result in sorted((ROOT / RESULTS).glob("*.md")):
        pages[f"measurements/{result.name}"] = result.read_text(encoding="utf-8")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make the links of a page hold on the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """Return a page's text with the links of the site: `page` is its place in docs/ or among the generated pages.

    A page of measurements is found below `measurements/`; a file that only the repository has becomes its name. A link
    that leads nowhere stays, so that the build names it.
    """
    home = _home(page)

    def moved(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        path, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(home, path))
        on_site = _on_site(place)
        if on_site is None:
            if not (ROOT / place).exists():
                return found[0]
            return f"{text} (`{place}`)" if text.strip("`") != place else f"`{place}`"
        relative = posixpath.relpath(on_site, PurePosixPath(page).parent)
        return f"{picture}[{text}]({relative}{'#' + anchor if anchor else ''})"

    return _LINK.sub(moved, markdown)


def _home(page: str) -> str:
    """The folder of the repository from which a page's links lead."""
    if page.startswith("measurements/"):
        return RESULTS
    if page == "reference/changes.md":
        return ""
    return posixpath.join("docs", PurePosixPath(page).parent.as_posix())


def _on_site(place: str) -> str | None:
    """The place on the site of a file of the repository, or None where the site lacks it."""
    path = PurePosixPath(place)
    if path.parts[:1] == ("docs",) and (ROOT / place).is_file():
        return path.relative_to("docs").as_posix()
    if path.parts[:1] == ("docs",) and path.parts[1:2] == ("reference",):
        return path.relative_to("docs").as_posix()
    if path.parent.as_posix() == RESULTS and path.suffix == ".md":
        return f"measurements/{path.name}"
    return {"CHANGELOG.md": "reference/changes.md"}.get(place)


# ---- the command line ------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Return the reference of all commands: what each does, its example, its arguments and options."""
    from typer.main import get_command

    from protoserve.cli.root import build_app

    lines = ["# Commands", "", "Every command has `--help`. A mistake prints one line and exits with code 2.", ""]
    for words, command in _commands((), get_command(build_app())):
        help_text, _, example = (command.help or "").partition("Example: ")
        lines += [f"## protoserve {' '.join(words)}", "", _plain(help_text), ""]
        if example:
            lines += ["```sh", " ".join(example.split()), "```", ""]
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        lines += [*_table(("", "", "default"), rows), ""]
    return "\n".join(lines)


def _commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    children: Mapping[str, Any] | None = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name, child in sorted(children.items()):
        yield from _commands((*words, name), child)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    names = ", ".join(
        f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts) if option.startswith("-")
    )
    default = parameter.default
    told = "" if default in (None, (), [], False) or callable(default) else f"`{getattr(default, 'value', default)}`"
    return names or f"`{parameter.metavar or parameter.name.upper()}`", _plain(parameter.help or ""), told


def _plain(text: str) -> str:
    """Help as Markdown: without the marks of the terminal's styles, one line a paragraph."""
    paragraphs = re.sub(r"\[/?(?:bold|dim|italic)\]", "**", text).strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


# ---- HTTP ------------------------------------------------------------------------------------------------------------


def http_page() -> str:
    """Return the reference of the service's routes and documents, from its OpenAPI document."""
    from service.contract.openapi import openapi_document

    document = openapi_document()
    lines = [
        "# HTTP reference",
        "",
        "Made from the OpenAPI document, which a running service has at `/openapi.json`.",
        "[Serving](../serving.md) explains limits, errors and keys.",
        "",
        "## Routes",
        "",
    ]
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                lines += _operation(method, path, operations[method])
    lines += ["## Documents", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += [f"### {name}", "", _cell(schema.get("description", "")), ""]
        fields = schema.get("properties", {})
        rows = [(f"`{field}`", _type(told), _cell(told.get("description", ""))) for field, told in fields.items()]
        lines += [*_table(("field", "type", ""), rows), ""]
    return "\n".join(lines)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"### {method.upper()} {path}", "", _cell(operation.get("summary", "")) + ".", ""]
    if description := operation.get("description"):
        lines += [_cell(description), ""]
    parameters = [
        (f"`{told['name']}`", told["in"], _type(told["schema"]), _cell(told.get("description", "")))
        for told in operation.get("parameters", ())
    ]
    lines += [*_table(("parameter", "in", "type", ""), parameters), ""]
    bodies = [(f"`{media}`", _type(told.get("schema", {}))) for media, told in _content(operation.get("requestBody"))]
    lines += [*_table(("body", "type"), bodies), ""]
    answers = [
        (
            f"`{code}`",
            _cell(told.get("description", "")),
            ", ".join(_type(body["schema"]) for _, body in _content(told)),
        )
        for code, told in operation.get("responses", {}).items()
    ]
    return [*lines, *_table(("answer", "", "document"), answers), ""]


def _content(told: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    return [(media, body) for media, body in ((told or {}).get("content") or {}).items() if "schema" in body]


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a word or a link, such as `array of integer` or `number or null`."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if options := schema.get(key):
            return " or ".join(dict.fromkeys(_type(option) for option in options))
    if values := schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return str(schema.get("format", kind) if kind == "string" else kind)


def _cell(text: str) -> str:
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table; nothing where it has no rows."""
    if not rows:
        return []
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
