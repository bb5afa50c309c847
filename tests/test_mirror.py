"""Every module of the packages has the test file of its name, in the same room of `tests/`, and every test file there
has its module."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protoserve", "training", "export", "service")
# Modules that only start something: a test of them would repeat them.
EXEMPT_MODULES = frozenset({"training/__main__.py", "export/targets/litert_converting.py"})
# Test files of more, or of other files, than one module.
EXEMPT_TESTS = {
    "tests/service/page/test_script.py": "tests the modules of the page's script in Node",
    "tests/service/test_bentofile.py": "tests bentofile.yaml beside pyproject.toml",
    "tests/service/test_hostile.py": "sends hostile uploads through the whole service",
}


def untested(root: Path, packages: tuple[str, ...], exempt: Collection[str]) -> list[str]:
    """`module: the test file it lacks`, for every module without one."""
    lines = []
    for package in packages:
        for module in sorted((root / package).rglob("*.py")):
            name = module.relative_to(root)
            test = Path("tests") / name.parent / f"test_{name.name}"
            if module.name != "__init__.py" and name.as_posix() not in exempt and not (root / test).is_file():
                lines.append(f"{name.as_posix()}: {test.as_posix()}")
    return lines


def without_module(root: Path, packages: tuple[str, ...], exempt: Collection[str]) -> list[str]:
    """`test file: the module it lacks`, for every test file below `tests/` and a package without one."""
    lines = []
    for package in packages:
        for test in sorted((root / "tests" / package).rglob("test_*.py")):
            name = test.relative_to(root)
            module = name.relative_to("tests").with_name(name.name.removeprefix("test_"))
            if name.as_posix() not in exempt and not (root / module).is_file():
                lines.append(f"{name.as_posix()}: {module.as_posix()}")
    return lines


def test_every_module_has_the_test_file_of_its_name() -> None:
    assert untested(ROOT, PACKAGES, EXEMPT_MODULES) == []


def test_every_test_file_has_the_module_of_its_name() -> None:
    assert without_module(ROOT, PACKAGES, EXEMPT_TESTS) == []


def test_exempt_files_exist_and_need_their_exemption() -> None:
    for name in (*EXEMPT_MODULES, *EXEMPT_TESTS):
        assert (ROOT / name).is_file(), f"{name} is gone: remove its exemption"
    assert len(untested(ROOT, PACKAGES, ())) == len(EXEMPT_MODULES)
    assert len(without_module(ROOT, PACKAGES, ())) == len(EXEMPT_TESTS)


def test_a_module_or_test_file_without_its_counterpart_is_named(tmp_path: Path) -> None:
    names = ("room/a.py", "room/b.py", "room/__init__.py", "tests/room/conftest.py", "tests/room/test_b.py")
    for name in (*names, "tests/room/deep/test_a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert untested(tmp_path, ("room",), ()) == ["room/a.py: tests/room/test_a.py"]
    assert untested(tmp_path, ("room",), {"room/a.py"}) == []
    assert without_module(tmp_path, ("room",), ()) == ["tests/room/deep/test_a.py: room/deep/a.py"]
    assert without_module(tmp_path, ("room",), {"tests/room/deep/test_a.py"}) == []
