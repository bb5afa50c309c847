"""The root command: the packages' commands, missing extras, and how a process ends."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from typer.main import get_command

import protoserve
from protoserve.cli import root
from protoserve.cli.root import build_app, main
from protoserve.schema import Prediction
from tests.protoserve.cli.command_line import CommandLine

MAIN = "from protoserve.cli.root import main; main()"
# Written down by hand: the extra that every command of another package belongs to.
EXTRA_OF_COMMAND = {
    "ablate": "train",
    "centre": "export",
    "benchmark": "export",
    "curate": "export",
    "data render": "train",
    "evaluate": "train",
    "export": "export",
    "extend": "train",
    "key": "serve",
    "publish": "serve",
    "serve": "serve",
    "train": "train",
    "validate": "export",
}
# Libraries that only an extra brings.
LIBRARIES = {
    "train": ("torch", "torchvision", "sklearn", "matplotlib", "pyarrow", "ruamel", "ruamel.yaml"),
    "export": ("torch", "torchvision", "onnx", "onnxscript", "pyarrow", "sklearn", "ruamel", "ruamel.yaml"),
    "serve": ("bentoml", "prometheus_client", "pydantic_settings", "python_multipart", "starlette", "uvicorn"),
}


def process(code: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "bundle"],
        ["predict", "bundle", "image", "--top-k", "many"],
        ["predict", "bundle", "image", "--device", "tpu"],
        ["explain", "bundle", "image"],
        ["inspect"],
        ["inspect", "bundle", "--yaml"],
        ["pretend"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], protoserve_command: CommandLine) -> None:
    code, out, err = protoserve_command(*arguments)
    assert (code, out) == (2, "") and "Usage" in err and "Traceback" not in err


def test_version_and_help(protoserve_command: CommandLine) -> None:
    assert protoserve_command("--version") == (0, f"protoserve {protoserve.__version__}\n", "")
    for command in ("predict", "explain", "inspect"):
        code, out, _ = protoserve_command(command, "--help")
        assert code == 0 and f"Example: protoserve {command} bundles/" in out


# ---- other packages' commands ----------------------------------------------------------------------------------------


def test_every_command_of_another_package_has_one_entry_point_with_its_extra() -> None:
    assert sorted(point.name for point in entry_points(group=root.ENTRY_POINTS)) == sorted(
        f"{extra}.{words.replace(' ', '.')}" for words, extra in EXTRA_OF_COMMAND.items()
    )


@pytest.mark.parametrize("words", sorted(EXTRA_OF_COMMAND))
def test_an_installed_command_shows_its_own_help(words: str, protoserve_command: CommandLine) -> None:
    code, out, _ = protoserve_command(*words.split(), "--help")
    assert code == 0 and f"Usage: protoserve {words} " in out and "Needs the extra" not in out


def test_help_lists_the_commands_of_all_packages(protoserve_command: CommandLine) -> None:
    _, out, _ = protoserve_command("--help")
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and len(line.split()) > 2]
    own = {"predict", "explain", "inspect", "ensemble", "score"}
    assert {words.split()[0] for words in EXTRA_OF_COMMAND} | own <= set(listed)


@pytest.mark.parametrize("words", sorted(set(EXTRA_OF_COMMAND) - {"curate", "data render", "key", "validate"}))
def test_without_its_extra_a_command_names_it_in_one_line(words: str, tmp_path: Path) -> None:
    """In a process that can't import the extra's libraries; `data render` and `key` need none of them, `curate` and
    `validate` first read the bundle."""
    command = get_command(build_app()).commands[words]  # type: ignore[attr-defined]
    (example,) = re.findall(r"Example: protoserve ([^&\n]+)", command.help)
    # A run as far as a command can tell without reading its network.
    (tmp_path / "runs" / "grocery").mkdir(parents=True)
    (tmp_path / "runs" / "grocery" / "model.pt").touch()
    extra = EXTRA_OF_COMMAND[words]
    code = f"import sys; sys.modules.update(dict.fromkeys({LIBRARIES[extra]!r})); {MAIN}"
    ended = process(code, *example.split(), cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "" and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert f"pip install 'protoserve[{extra}]'" in ended.stderr


def test_an_eager_option_without_its_extra_names_it() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({LIBRARIES['export']!r})); {MAIN}"
    ended = process(code, "export", "--list-targets")
    assert ended.returncode == 2 and "pip install 'protoserve[export]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str) -> None:
    """Install one command: a module with a function `run`, found through the entry point `name`."""
    module = f"module_{name.replace('.', '_')}_{abs(hash(code))}"
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    installed = [EntryPoint(name=name, value=f"{module}:run", group=root.ENTRY_POINTS)]
    monkeypatch.setattr(root, "entry_points", lambda group: installed)


def function(body: str) -> str:
    """A module with one command."""
    return f'def run() -> None:\n    """Sing."""\n    {body}\n'


@pytest.mark.parametrize("words", ["sing", "choir sing"])
def test_a_package_adds_its_commands(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    install(monkeypatch, tmp_path, f"train.{words.replace(' ', '.')}", function("print('la')"))
    assert protoserve_command(*words.split()) == (0, "la\n", "")
    assert "Sing." in protoserve_command(*words.split(), "--help").out


@pytest.mark.parametrize("words", ["sing", "choir sing"])
def test_a_module_that_lacks_a_library_costs_its_command_alone(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path, protoserve_command: CommandLine
) -> None:
    install(monkeypatch, tmp_path, f"train.{words.replace(' ', '.')}", "import library_that_nobody_has\n")
    code, out, err = protoserve_command(*words.split(), "runs/grocery", "--seed", "1")
    assert (code, out) == (2, "") and "pip install 'protoserve[train]'" in err
    assert f"'protoserve {words}' (which imports library_that_nobody_has)" in err
    assert protoserve_command("inspect", tiny_bundle, "--json").code == 0


@pytest.mark.parametrize("words", ["sing", "choir sing"])
def test_an_extra_that_is_missing_only_when_the_command_runs(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    install(monkeypatch, tmp_path, f"serve.{words.replace(' ', '.')}", function("import library_that_nobody_has"))
    code, out, err = protoserve_command(*words.split())
    assert (code, out) == (2, "") and "pip install 'protoserve[serve]'" in err


def test_a_mistake_in_our_own_imports_is_not_blamed_on_an_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "train.sing", function("import protoserve.absent"))
    with pytest.raises(ModuleNotFoundError, match=r"protoserve\.absent"):
        main(["sing"])


def test_an_interrupt_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    install(monkeypatch, tmp_path, "train.sing", function("raise KeyboardInterrupt"))
    status, out, err = protoserve_command("sing")
    assert (status, out) == (130, "") and "Traceback" not in err


# ---- as a process ----------------------------------------------------------------------------------------------------


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom protoserve.cli.root import main\n"
        "try:\n    main(['predict', '--help'])\nexcept SystemExit:\n"
        "    print(sorted(set(sys.modules) & {'torch', 'bentoml', 'onnxruntime'}), file=sys.stderr)"
    )
    finished = process(code)
    assert finished.returncode == 0 and finished.stderr == "[]\n"


def test_predict_needs_no_torch(tiny_bundle: Path, photograph: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom protoserve.cli.root import main\n"
        f"main(['predict', {str(tiny_bundle)!r}, {str(photograph)!r}, '--json', '--device', 'cpu'])"
    )
    finished = process(code)
    assert finished.returncode == 0, finished.stderr
    assert Prediction.model_validate_json(finished.stdout).path


def test_errors_of_a_real_process(tiny_bundle: Path, tmp_path: Path) -> None:
    finished = process(MAIN, "predict", tiny_bundle, tmp_path / "gone.jpg", "--json")
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr == f"error: {tmp_path / 'gone.jpg'}: no such image\n"


def test_a_closed_pipe_is_quiet(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", MAIN, "inspect", str(tiny_bundle), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
