"""The house rules: imports between rooms, requirements of the extras, sizes and versions."""

from __future__ import annotations

import ast
import re
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

from protoserve import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("protoserve", "training", "export", "service")
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The rooms that each room may import.
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
        pytest.skip("this is not a git checkout")
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


def test_the_linter_exempts_only_networks_from_doing_without_torch() -> None:
    """`lint-imports` also follows indirect imports."""
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["name"].startswith("torch only")]
    assert contract["source_modules"] == ["protoserve", "service"]
    assert set(contract["forbidden_modules"]) == TORCH
    assert all(line.startswith("protoserve.networks.* -> ") for line in contract["ignore_imports"])


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], {"torch", "bentoml", "sklearn", "matplotlib", "onnxruntime", "numpy", "PIL", "pydantic"}),
        (["train", "--help"], {"torch", "bentoml", "sklearn", "matplotlib", "onnxruntime"}),
        (["serve", "--help"], {"torch", "bentoml", "sklearn", "matplotlib", "onnxruntime"}),
        (
            ["predict", "BUNDLE", "PHOTOGRAPH", "--json"],
            {
                "torch",
                "bentoml",
                "sklearn",
                "matplotlib",
                "ruamel",
                "pandas",
                "pyarrow",
                "scipy",
                "onnx",
                "timm",
                "yaml",
            },
        ),
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


# Imports of the core that only the commands of `train` and `export` reach: data sets, YAML and scores.
LENT = {
    "protoserve/data/tables.py": {"pyarrow"},
    "protoserve/scores.py": {"sklearn"},
    "protoserve/files.py": {"ruamel"},
}
# Modules that need an extra of their own.
OWN_EXTRA = {
    **{path.relative_to(ROOT).as_posix(): "client" for path in sorted((ROOT / "protoserve/client").glob("*.py"))},
    "protoserve/feedback/database.py": "feedback",
    "protoserve/images/formats.py": "heif",
    "protoserve/networks/timm_models.py": "timm",
    "protoserve/networks/weights_file.py": "timm",
    "protoserve/replay/scored.py": "score",
    "protoserve/scoring/local.py": "score",
    "protoserve/cli/score.py": "score",
    "protoserve/scoring/ray.py": "ray",
}


EVERY_EXTRA = tuple(PROJECT["project"]["optional-dependencies"])


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
    outside = top(names) - set(sys.stdlib_module_names) - set(ROOMS) - {"benchmarks", "scripts", "tests"}
    return {name: {canonicalize_name(owner) for owner in owners.get(name, [name])} for name in outside}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("protoserve", ()),
        ("training", ("train",)),
        ("export", ("export", "targets")),
        ("service", ("serve",)),
        ("tests", EVERY_EXTRA),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_imported_is_required(package: str, extras: tuple[str, ...]) -> None:
    """By name, because a dependency of a dependency may go away."""
    for file in modules(package):
        chosen = extras
        names = imported(file)
        if (ROOT / "protoserve" / "networks") in file.parents:
            # Training and export both import it, so each extra must be enough.
            chosen = ("train",)
            own = [extra for extra in [OWN_EXTRA.get(file.relative_to(ROOT).as_posix())] if extra]
            assert all(owners & required("export", *own) for owners in distributions(names).values()), file
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


# ---- size ------------------------------------------------------------------------------------------------------------

MOST_LINES = 400


def test_every_module_is_read_in_one_sitting() -> None:
    for name, text in tracked_texts():
        if name.endswith(".py"):
            lines = text.count("\n")
            assert lines <= MOST_LINES, f"{name} has {lines} lines, more than {MOST_LINES}: split it"


# ---- every file ------------------------------------------------------------------------------------------------------


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
