"""Every module of the packages has the test file of its name, in the same room of `tests/`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protoserve", "training", "export", "service")
# Modules that only declare, or only start something: a test of them would repeat them.
EXEMPT = frozenset({"training/__main__.py"})


def missing(root: Path, packages: tuple[str, ...], exempt: frozenset[str]) -> list[str]:
    """`module: the test file it lacks`, for every module without one."""
    lines = []
    for package in packages:
        for module in sorted((root / package).rglob("*.py")):
            name = module.relative_to(root)
            test = Path("tests") / name.parent / f"test_{name.name}"
            if module.name != "__init__.py" and name.as_posix() not in exempt and not (root / test).is_file():
                lines.append(f"{name.as_posix()}: {test.as_posix()}")
    return lines


def test_every_module_has_the_test_file_of_its_name() -> None:
    assert missing(ROOT, PACKAGES, EXEMPT) == []


def test_exempt_modules_exist_and_have_no_test_file() -> None:
    for name in EXEMPT:
        module = Path(name)
        assert (ROOT / module).is_file(), f"{name} is gone: take it off EXEMPT"
        assert not (ROOT / "tests" / module.parent / f"test_{module.name}").exists(), f"{name} has a test file"


def test_a_module_without_its_test_file_is_named(tmp_path: Path) -> None:
    for name in ("room/a.py", "room/b.py", "room/__init__.py", "tests/room/test_b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert missing(tmp_path, ("room",), frozenset()) == ["room/a.py: tests/room/test_a.py"]
    assert missing(tmp_path, ("room",), frozenset({"room/a.py"})) == []
