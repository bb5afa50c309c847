"""The house rules: who may import what, what each extra must bring, and that what is written down is true."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command

from protoserve import __version__
from protoserve.cli.root import build_app
from protoserve.schema import Prediction

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("protoserve", "training", "export", "service")
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What a module may import from outside, and what it may import of the house.
TORCH = {"torch", "torchvision"}
MAY_IMPORT = {
    "protoserve": {"protoserve"},
    "training": {"protoserve", "training"},
    "export": {"protoserve", "export"},
    "service": {"protoserve", "service"},
}


def modules(package: str) -> Iterator[Path]:
    return (ROOT / package).rglob("*.py")


def imported(file: Path) -> set[str]:
    """The full names of all modules that a file imports, also inside functions and for types only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def tracked_texts() -> Iterator[tuple[str, str]]:
    """The path and content of every text file of the project: what git holds or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listing.stdout.decode().split("\0")):
        file = ROOT / name
        content = file.read_bytes() if file.is_file() else b""
        if b"\0" not in content:
            yield name, content.decode("utf-8")


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_rooms_import_only_the_floor_below() -> None:
    for room in ROOMS:
        for file in modules(room):
            strange = top(imported(file)) & set(ROOMS) - MAY_IMPORT[room]
            assert not strange, f"{file.relative_to(ROOT)} imports {strange}"


def test_only_networks_training_and_export_import_torch() -> None:
    for file in (*modules("protoserve"), *modules("service")):
        if (ROOT / "protoserve" / "networks") in file.parents:
            continue
        names = imported(file)
        assert not top(names) & TORCH, f"{file.relative_to(ROOT)} imports torch"
        assert not any(name.startswith("protoserve.networks") for name in names), file.relative_to(ROOT)


def test_the_linter_watches_every_module_that_must_do_without_torch() -> None:
    """`lint-imports`, which also follows indirect imports, lists its modules one by one."""
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = [found for found in contracts if found["name"].startswith("torch only")]
    below = {file.stem for file in (ROOT / "protoserve").glob("*.py")} - {"__init__"}
    below |= {file.parent.name for file in (ROOT / "protoserve").glob("*/__init__.py")} - {"networks"}
    assert set(contract["source_modules"]) == {"service", *(f"protoserve.{name}" for name in below)}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], {"torch", "bentoml", "sklearn", "matplotlib", "onnxruntime", "numpy", "PIL", "pydantic"}),
        (["train", "--help"], {"torch", "bentoml", "sklearn", "matplotlib", "onnxruntime"}),
        (["serve", "--help"], {"torch", "bentoml", "sklearn", "matplotlib", "onnxruntime"}),
        (["predict", "BUNDLE", "PHOTOGRAPH", "--json"], {"torch", "bentoml", "sklearn", "matplotlib", "ruamel"}),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_commands_import_no_more_than_they_need(
    arguments: list[str], unwanted: set[str], tiny_bundle: Path, photograph: Path
) -> None:
    places = {"BUNDLE": str(tiny_bundle), "PHOTOGRAPH": str(photograph)}
    code = "from protoserve.cli.root import main; main()"
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *(places.get(word, word) for word in arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    loaded = top({line.rpartition("|")[2].strip() for line in lines})
    assert "typer" in loaded
    assert not loaded & unwanted


# ---- requirements ----------------------------------------------------------------------------------------------------


# Of the core, what only the commands of `train` and `export` come to: data sets (a class tree in YAML) and scores.
LENT = {
    "protoserve/data/tables.py": {"pyarrow"},
    "protoserve/scores.py": {"sklearn"},
    "protoserve/files.py": {"ruamel"},
}
# What asks for an extra of its own.
OWN_EXTRA = {
    "protoserve/client.py": "client",
    "protoserve/scoring/local.py": "score",
    "protoserve/cli/score.py": "score",
    "protoserve/scoring/ray.py": "ray",
}


def required(*extras: str) -> set[str]:
    """The distributions that the core and the extras ask for by name."""
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in wanted}


@cache
def known_owners() -> Mapping[str, list[str]]:
    # Reads the records of every installed distribution.
    return packages_distributions()


def distributions(names: set[str]) -> dict[str, set[str]]:
    """For each imported top-level module from outside, the distributions that bring it."""
    owners = known_owners()
    outside = top(names) - set(sys.stdlib_module_names) - set(ROOMS) - {"tests"}
    return {name: {canonicalize_name(owner) for owner in owners.get(name, [name])} for name in outside}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("protoserve", ()),
        ("training", ("train",)),
        ("export", ("export", "targets")),
        ("service", ("serve",)),
        ("tests", "*"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_imported_is_required(package: str, extras: tuple[str, ...]) -> None:
    """By name: what merely comes along with something else may stop coming along."""
    everything = tuple(PROJECT["project"]["optional-dependencies"])
    for file in modules(package):
        chosen = everything if extras == "*" else extras
        names = imported(file)
        if (ROOT / "protoserve" / "networks") in file.parents:
            # Read by training and by export; each extra must be enough.
            chosen = ("train",)
            assert all(owners & required("export") for owners in distributions(names).values()), file
        chosen = (*chosen, *filter(None, [OWN_EXTRA.get(file.relative_to(ROOT).as_posix())]))
        lent = LENT.get(file.relative_to(ROOT).as_posix(), set())
        assert all(owners & required("train") & required("export") for owners in distributions(lent).values())
        names -= {name for name in names if top({name}) & lent}
        for name, owners in distributions(names).items():
            assert owners & required(*chosen), f"{file.relative_to(ROOT)} imports {name}"


def test_constraints_pin_every_requirement_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert pin.url is None
        versions[canonicalize_name(pin.name)] = specifier.version
    assert len(versions) == len(pins), "one version per package"
    extras = PROJECT["project"]["optional-dependencies"].values()
    for line in (*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)):
        requirement = Requirement(line)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: constraints.txt says {version}"


def test_every_extra_has_its_entry_point() -> None:
    entry_points = PROJECT["project"]["entry-points"]["protoserve.commands"]
    assert {name.partition(".")[0] for name in entry_points} == {"train", "export", "serve"}


# ---- the command line ------------------------------------------------------------------------------------------------


def all_commands() -> dict[str, Any]:
    """Every command by its words, such as `data render`."""
    found: dict[str, Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found[" ".join(words)] = command
            return
        for name, child in children.items():
            walk((*words, name), child)

    walk((), get_command(build_app()))
    return found


COMMANDS = all_commands()


def test_the_commands_are_those_that_others_rely_on() -> None:
    promised = "data render, train, evaluate, export, validate, predict, explain, inspect, publish, serve"
    assert set(promised.split(", ")) <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_explains_itself_with_an_example(words: str) -> None:
    command = COMMANDS[words]
    text = f"{command.help}\n{command.epilog}"
    (example,) = re.findall(r"Example: (.+)", text)
    assert example.startswith(f"protoserve {words} ")
    for part in example.split(" && "):
        if part.startswith("protoserve "):
            assert_would_parse(part)
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"protoserve {words}: {parameter.name} is not explained"


def assert_would_parse(line: str) -> None:
    """The command exists, takes these options and this number of arguments."""
    words = shlex.split(line, comments=True)[1:]
    (name,) = [known for known in COMMANDS if words[: len(known.split())] == known.split()] or [None]
    assert name, f"no such command: {line}"
    command = COMMANDS[name]
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    arguments: list[str] = []
    rest = iter(words[len(name.split()) :])
    for word in rest:
        if not word.startswith("-"):
            arguments.append(word)
            continue
        assert word in options, f"no option {word}: {line}"
        if not options[word].is_flag:
            assert next(rest, None) is not None, f"{word} takes a value: {line}"
    positional = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    open_ended = any(parameter.nargs == -1 for parameter in positional)
    assert len(arguments) == len(positional) or (open_ended and len(arguments) > len(positional)), line
    given = {options[word].name for word in words if word in options}
    for parameter in command.params:
        if parameter.required and parameter.param_type_name == "option":
            assert parameter.name in given, f"{parameter.opts[0]} is missing: {line}"


# ---- what is written down --------------------------------------------------------------------------------------------


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    lines = "\n".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.startswith("#")]


DOCUMENTS = ("README.md", "CONTRIBUTING.md")
LINES = [(name, line) for name in DOCUMENTS for line in shell_lines((ROOT / name).read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("document", "line"), LINES, ids=[line for _, line in LINES])
def test_documented_commands_exist(document: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    words = shlex.split(line, comments=True)
    if words[0] == "protoserve":
        assert_would_parse(line)
    elif words[0] == "torchrun":
        _, arguments = line.split(" -m training -- ")
        assert_would_parse(f"protoserve train {arguments}")
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets
    else:
        known = {"python", ".venv/bin/python", ".venv/bin/pytest", ".venv/bin/ruff", "pip", "curl", "bentoml", "git"}
        assert words[0] in known, f"{document}: what is {words[0]}?"
    for word in words:
        if word.startswith(("training/configs/", "tests/", "scripts/", "benchmarks/")):
            assert (ROOT / word.partition("::")[0]).exists(), f"{document}: {word} does not exist"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_documented_files_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    for target in sorted(link for link in links if link and "://" not in link):
        assert (ROOT / target).exists(), f"{document} links to {target}"
    anchors = {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in headings(text)}
    for anchor in re.findall(r"\]\(#([^)\s]+)\)", text):
        assert anchor in anchors, f"{document} links to #{anchor}"


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def test_the_readme_shows_a_true_document() -> None:
    documents = [json.loads(block) for block in blocks("json")]
    predictions = [Prediction.model_validate(document) for document in documents if "levels" in document]
    assert predictions
    for prediction in predictions:
        for level in prediction.levels:
            for evidence in level.evidence:
                product = evidence.similarity * evidence.weight
                assert evidence.contribution == pytest.approx(product, abs=0.02)
            if level.logit is not None and level.evidence_share is not None:
                shown = sum(evidence.contribution for evidence in level.evidence)
                assert level.evidence_share == pytest.approx(shown / level.logit, abs=0.01)


def test_the_readme_shows_python_that_runs(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    """In a folder that holds what the examples name, and without torch."""
    (tmp_path / "bundles").mkdir()
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "grocery")
    for name in ("photo.jpg", "other.jpg"):
        shutil.copyfile(photograph, tmp_path / name)
    examples = blocks("python")
    assert examples
    code = "import sys\nsys.modules['torch'] = None\n" + "\n".join(examples)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert __version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, flags=re.MULTILINE)
    assert released[0] == version


def test_no_file_names_this_machine_or_a_registry() -> None:
    # Written so that this file does not name them either.
    folders = "|".join(("work", "root", "opt", "Users"))
    place = re.compile(rf"(?<![\w.:/~*-])/({folders})/")
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "extra-index" + "-url")
    for name, text in tracked_texts():
        assert not (found := place.search(text)), f"{name} names {found[0]}"
        for host in hosts:
            assert host not in text, f"{name} names {host}"
