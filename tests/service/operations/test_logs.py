"""The two forms of log lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.operations.logs import JsonLineFormatter, TextFormatter
from service.operations.request_context import RequestContext, bind_context

ROOT = Path(__file__).resolve().parents[3]


def make_record(name: str = "protoserve.x", **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord(name, logging.WARNING, "file.py", 1, "%s broke", ("it",), None)
    vars(record).update(extra)
    return record


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(JsonLineFormatter().format(record))
    return line


def test_a_json_line_has_time_level_logger_message_and_the_extra_fields() -> None:
    record = make_record(status=200, stages={"read": 0.5}, file=Path("a/b"), word="Äpfel")
    line = as_json(record)
    written = datetime.fromisoformat(line.pop("time"))
    assert written.utcoffset() == timedelta(0)
    assert abs(written.timestamp() - record.created) < 0.001
    assert line == {
        "level": "warning",
        "logger": "protoserve.x",
        "message": "it broke",
        "status": 200,
        "stages": {"read": 0.5},
        "file": "a/b",
        "word": "Äpfel",
    }
    assert "Äpfel" in JsonLineFormatter().format(record)


def test_a_json_line_names_the_current_request() -> None:
    with bind_context(RequestContext("r-1")):
        assert as_json(make_record())["request_id"] == "r-1"
        assert as_json(make_record(request_id="r-2"))["request_id"] == "r-2"
        # BentoML adds an id of its own to the records of other loggers.
        assert as_json(make_record("bentoml", request_id="0", component="c"))["request_id"] == "r-1"
    assert "request_id" not in as_json(make_record())


@pytest.mark.parametrize("formatter", [JsonLineFormatter(), TextFormatter()])
def test_fields_of_bentoml_and_uvicorn_are_left_out(formatter: logging.Formatter) -> None:
    noise = {"levelname_bracketed": "noise", "component": "noise", "trace_msg": "noise", "service_name": "noise"}
    assert "noise" not in formatter.format(make_record("bentoml.access", color_message="noise", **noise))
    assert "noise" in formatter.format(make_record("protoserve.access", component="noise"))


def test_a_traceback_stays_within_its_json_line() -> None:
    try:
        raise ValueError("why\nso")
    except ValueError:
        record = make_record()
        record.exc_info = sys.exc_info()
    written = JsonLineFormatter().format(record)
    assert "\n" not in written
    line = json.loads(written)
    assert set(line) == {"time", "level", "logger", "message", "traceback"}
    assert line["traceback"].startswith("Traceback")
    assert "ValueError: why\nso" in line["traceback"]
    assert "ValueError: why" in TextFormatter().format(record)


def test_a_text_line_ends_with_the_extra_fields() -> None:
    line = TextFormatter().format(make_record(status=200, route="/livez"))
    assert line.endswith(" warning it broke  status=200 route=/livez")


def test_configured_logs_go_to_standard_error() -> None:
    """In a process of its own: the configuration closes handlers, and some libraries' handlers close their stream,
    which here may be pytest's."""
    code = (
        "import logging\nfrom service.operations.logs import configure_logs\nconfigure_logs('json', 'info')\n"
        "logging.getLogger('protoserve.x').info('kept', extra={'a': 1})\n"
        "logging.getLogger('protoserve.x').debug('dropped')\nlogging.getLogger('elsewhere').info('dropped')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    [line] = ended.stderr.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["a"], ended.stdout) == ("kept", 1, "")


@pytest.mark.parametrize(
    "hostile",
    [
        "/a\n2026-01-01T00:00:00+00:00 info    request",
        "/a\rb",
        "/\x1b]0;title\x07\x1b[2J",
        "/\x85\u2028\u202e",
        "/\x9b2J",
        "/\udcff",
    ],
)
def test_text_from_outside_stays_within_its_field(hostile: str) -> None:
    record = make_record(path=hostile, nested={"name": hostile})
    record.args = (hostile,)
    line = TextFormatter().format(record)
    assert line.splitlines() == [line]
    assert line.isprintable()
    as_json_line = JsonLineFormatter().format(record)
    assert json.loads(as_json_line)["path"] == hostile
    assert as_json_line.isprintable()
    assert line.encode() and as_json_line.encode()


def test_a_traceback_cannot_start_a_record_of_its_own() -> None:
    try:
        raise ValueError("why\n2026-01-01T00:00:00+00:00 info    forged\x1b[2J")
    except ValueError:
        record = make_record()
        record.exc_info = sys.exc_info()
    first, *rest = TextFormatter().format(record).split("\n")
    assert "it broke" in first
    assert rest and all(line.startswith("  ") and line.isprintable() for line in rest)
