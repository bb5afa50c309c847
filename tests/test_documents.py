"""Help texts, README.md, CONTRIBUTING.md and docs are true: commands parse, examples run, files exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import protoserve
from protoserve.cli.root import build_app
from protoserve.schema import Prediction
from tests.e2e.serving import serving

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

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
            assert parameter.help, f"protoserve {words}: {parameter.name} has no help"


def assert_would_parse(line: str) -> None:
    """The command exists, takes these options and this number of arguments."""
    words = shlex.split(line, comments=True)[1:]
    names = [known for known in COMMANDS if words[: len(known.split())] == known.split()]
    assert len(names) == 1, f"no such command: {line}"
    command, name = COMMANDS[names[0]], names[0]
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
    required = [parameter for parameter in positional if parameter.required]
    assert len(arguments) == len(positional) or (open_ended and len(arguments) >= len(required)), line
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


DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
SERVICE = "http://127.0.0.1:3000"
LINES = [(name, line) for name in DOCUMENTS for line in shell_lines((ROOT / name).read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("document", "line"), LINES, ids=[line for _, line in LINES])
def test_documented_commands_exist(document: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
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
        assert words[0] in known, f"{document}: {words[0]} is not a known command"
    for word in words:
        if word.startswith(("training/configs/", "tests/", "scripts/", "benchmarks/")):
            assert (ROOT / word.partition("::")[0]).exists(), f"{document}: {word} does not exist"


# Pages that only the site has; its own test follows their links.
GENERATED = {f"reference/{name}.md" for name in ("commands", "http", "changes")}


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_documented_files_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    for target in sorted(link for link in links - GENERATED if link and "://" not in link):
        assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"
    anchors = {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in headings(text)}
    for anchor in re.findall(r"\]\(#([^)\s]+)\)", text):
        assert anchor in anchors, f"{document} links to #{anchor}"


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


ANSWER = (ROOT / "docs/answer.md").read_text(encoding="utf-8")


def test_the_documents_show_a_true_answer() -> None:
    documents = [json.loads(block) for block in blocks("json", ANSWER)]
    predictions = [Prediction.model_validate(document) for document in documents if "levels" in document]
    assert predictions
    for prediction in predictions:
        for level in prediction.levels:
            for evidence in (*level.evidence, *level.against):
                told = evidence.weight * (evidence.similarity - evidence.usual)
                assert evidence.contribution == pytest.approx(told, abs=0.02)
            if level.logit is not None:
                assert level.prior is not None and level.rest is not None
                told = sum(evidence.contribution for evidence in (*level.evidence, *level.against))
                assert level.prior + told + level.rest == pytest.approx(level.logit, abs=0.005)
    assert any(level.against for prediction in predictions for level in prediction.levels)


def test_the_shown_answer_is_the_packaged_models_own() -> None:
    (shown,) = (json.loads(block) for block in blocks("json", ANSWER))
    sample = ROOT / "protoserve/demo/samples/0.png"
    answered = protoserve.load("demo", device="cpu").predict(sample, top_k=1, alternatives=1)
    assert_rounded(shown, answered.model_dump(mode="json"))


def assert_rounded(shown: Any, true: Any) -> None:
    """The documents have the same fields; numbers are rounded to four digits, and long texts may be cut by `…`."""
    if isinstance(true, dict):
        assert list(shown) == list(true)
        for name, value in true.items():
            assert_rounded(shown[name], value)
    elif isinstance(true, list):
        assert len(shown) == len(true)
        for one, other in zip(shown, true, strict=True):
            assert_rounded(one, other)
    elif isinstance(true, float):
        assert shown == pytest.approx(true, rel=1e-3, abs=1e-4)
    elif isinstance(true, str) and shown.endswith("…"):
        assert true.startswith(shown[:-1])
    else:
        assert shown == true


def run_example(code: str, folder: Path) -> str:
    """What an example of the README prints, in a folder that holds what the examples name, and without torch."""
    for name in ("photo.jpg", "other.jpg"):
        assert (folder / name).is_file()
    ended = subprocess.run(
        [sys.executable, "-c", "import sys\nsys.modules['torch'] = None\n" + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def named_files(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> Path:
    """A folder that holds the bundle and the pictures that the README names."""
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "grocery")
    for name in ("photo.jpg", "other.jpg"):
        shutil.copyfile(photograph, tmp_path / name)
    return tmp_path


CLIENT_EXAMPLES = [code for code in blocks("python") if SERVICE in code]


def test_the_readme_shows_python_that_runs(named_files: Path) -> None:
    examples = [code for code in blocks("python") if code not in CLIENT_EXAMPLES]
    assert examples
    # One after the other, as a reader would: later ones use the model that the first one loads.
    assert run_example("\n".join(examples), named_files)


def test_the_readme_shows_a_client_that_runs(named_files: Path) -> None:
    assert CLIENT_EXAMPLES
    with serving(named_files / "bundles" / "grocery", named_files) as server:
        for code in CLIENT_EXAMPLES:
            assert run_example(code.replace(SERVICE, server.address), named_files)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_fence_is_of_a_language_that_these_tests_read(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    languages = re.findall(r"^ *```(.*)$", text, flags=re.MULTILINE)[::2]
    assert set(languages) <= {"sh", "json", "python", "text"}
    shown = sum(len(blocks(language, text)) for language in set(languages))
    assert shown == len(languages), "a fence is indented or not closed"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_folders_exist(document: str) -> None:
    for block in blocks("text", (ROOT / document).read_text(encoding="utf-8")):
        for folder in re.findall(r"^(\w+)/", block, flags=re.MULTILINE):
            assert (ROOT / folder).is_dir(), f"{document} shows {folder}/"
