"""What the commands print: no control character of a name reaches the terminal, and no encoding ends a command."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from protoserve.cli import output

ROOT = Path(__file__).resolve().parents[3]
MAIN = "from protoserve.cli.root import main; main()"
# Sets the terminal's title, clears it, and forges a line of its own.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\rforged\nerror: none\u202e.png"


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`protoserve …` in a process of its own, with these variables."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=120,
    )


def on_a_terminal(*arguments: str | Path) -> bytes:
    """What `protoserve …` sends to a terminal, which rich then colours."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "200"}
    started = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)], env=environment, stdout=follower, stderr=follower
    )
    os.close(follower)
    sent = b""
    try:
        while part := os.read(leader, 65536):
            sent += part
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    started.wait(60)
    return sent


# ---- control characters ----------------------------------------------------------------------------------------------


def test_a_file_s_name_is_shown_and_not_obeyed(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    picture = tmp_path / HOSTILE
    picture.write_bytes(photograph.read_bytes())
    sent = on_a_terminal("predict", tiny_bundle, picture, "--device", "cpu")
    assert b"\\x1b]0;owned\\x07\\x1b[2J\\x0dforged\\nerror: none\\u202e.png" in sent
    assert b"\x1b]0" not in sent and b"\x1b[2J" not in sent and b"\x07" not in sent
    assert not any(line.startswith(b"error") for line in sent.splitlines())
    assert b"\x1b[1" in sent, "rich's own colours stay"


def test_an_error_that_names_a_file_is_one_line(tmp_path: Path) -> None:
    ended = command("inspect", tmp_path / "gone\x1b[2J\nerror: forged")
    assert ended.returncode == 2 and ended.stdout == b""
    assert ended.stderr.count(b"\n") == 1 and b"gone\\x1b[2J error: forged" in ended.stderr


def test_markup_in_a_name_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.console(width=80).print("a [/red] :smile: [bold]b[/bold]")
    assert capsys.readouterr().out == "a [/red] :smile: [bold]b[/bold]\n"


def test_lines_of_a_text_stay_lines_and_those_of_a_line_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("one\ntwo\x07")
    output.say_line("one\ntwo\x07", error=True)
    assert capsys.readouterr() == ("one\ntwo\\x07\n", "one\\ntwo\\x07\n")


# ---- encodings -------------------------------------------------------------------------------------------------------


def several(commands: list[list[str | Path]], **environment: str) -> tuple[list[int], str, str]:
    """(exit codes, output, errors) of several commands in one process, with these variables."""
    code = (
        "import json, sys\nfrom protoserve.cli.root import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit as ended:\n        print(f'ended with {ended.code}')"
    )
    words = json.dumps([[str(word) for word in command] for command in commands])
    ended = subprocess.run(
        [sys.executable, "-c", code, words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    out = ended.stdout.decode(environment["PYTHONIOENCODING"])
    codes = [int(line.rpartition(" ")[2]) for line in out.splitlines() if line.startswith("ended with ")]
    return codes, out, ended.stderr.decode(environment["PYTHONIOENCODING"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_is_printed_in_every_encoding(encoding: str) -> None:
    words = ("predict", "explain", "inspect", "score", "audit", "train", "data render", "export", "validate", "serve")
    commands: list[list[str | Path]] = [[*word.split(), "--help"] for word in ("", *words)]
    codes, out, err = several(commands, PYTHONIOENCODING=encoding)
    assert codes == [0] * len(commands) and err == ""
    assert out.count("Usage: protoserve") == len(commands)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_results_are_printed_in_every_encoding(
    encoding: str, tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "photo-绿-é.jpg"
    picture.write_bytes(photograph.read_bytes())
    commands: list[list[str | Path]] = [
        ["predict", tiny_bundle, picture],
        ["inspect", tiny_bundle],
        ["explain", tiny_bundle, picture, "-o", tmp_path / "绿.png"],
        ["score", tiny_bundle, tmp_path, "-o", tmp_path / "绿.parquet"],
        ["export", "--list-targets"],
        ["train", "gone-绿.yaml", "--data", "gone", "--run", "gone"],
    ]
    codes, out, err = several(commands, PYTHONIOENCODING=encoding, LC_ALL="C")
    assert codes == [0, 0, 0, 0, 0, 2], err
    assert "photo-\\u7eff-" in out and "error: gone-\\u7eff.yaml: neither a configuration file nor a recipe" in err


def test_our_own_typography_has_a_plain_form() -> None:
    ended = command("predict", "gone", "x.jpg", PYTHONIOENCODING="ascii")
    assert ended.returncode == 2 and b"\\u" not in ended.stderr
    code = "from protoserve.cli import output\noutput.prepare_streams()\noutput.say('“3 × 4” – a › b … −1 \\U0001f34f')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert printed.stdout == b'"3 x 4" - a > b ... -1 \\U0001f34f\n'


def test_json_stays_json_in_every_encoding(tiny_bundle: Path, photograph: Path) -> None:
    ended = command("predict", tiny_bundle, photograph, "--json", PYTHONIOENCODING="ascii")
    assert json.loads(ended.stdout)["path"]


# ---- one place -------------------------------------------------------------------------------------------------------


def test_commands_print_through_this_module_alone() -> None:
    """A `print`, a `typer.echo` or a console of rich elsewhere would send names as they are."""
    for folder in ("protoserve", "training", "export", "service"):
        for file in (ROOT / folder).rglob("*.py"):
            if file == ROOT / "protoserve" / "cli" / "output.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    quiet = any(keyword.arg == "quiet" for keyword in node.keywords)
                    printing = called in ("print", "typer.echo", "click.echo", "rich.print") or (
                        called == "Console" and not quiet
                    )
                    assert not printing, f"{file.relative_to(ROOT)}, line {node.lineno}: {called}"
