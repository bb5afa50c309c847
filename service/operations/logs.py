"""Log lines: one JSON object each (python-json-logger), with the id of the request that they belong to."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonFormatter

from protoserve.names import one_line
from service.operations.request_context import current_context

# "color_message" is uvicorn's copy of the message; Python 3.12 added "taskName".
_RESERVED: Final = (*RESERVED_ATTRS, "color_message", "taskName")
# BentoML's log filter adds these to every record.
_BENTOML_FIELDS: Final = ("levelname_bracketed", "component", "trace_msg", "request_id", "service_name")


class JsonLineFormatter(JsonFormatter):
    """Formats a record as JSON: time (UTC), level, logger, message, the `extra` fields, a traceback if there is one."""

    def __init__(self) -> None:
        super().__init__(
            ["message"],
            rename_fields={"exc_info": "traceback"},
            reserved_attrs=_RESERVED,
            json_default=str,
            json_ensure_ascii=False,
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. JSON itself allows characters that steer terminals or end lines; they are escaped, too."""
        line = super().format(record)
        return line if line.isprintable() else "".join(map(_escaped_for_json, line))

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Put our names for time, level and logger first, and add the request's id."""
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        super().add_fields(log_data, record, message_dict)
        _drop_bentoml_fields(log_data, record)
        if "request_id" not in log_data and (request_id := current_context().id) != "none":
            log_data["request_id"] = request_id


class TextFormatter(logging.Formatter):
    """Formats a record for a terminal: local time, level, message, then the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the traceback if there is one."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        fields = merge_record_extra(record, {}, reserved=_RESERVED)
        _drop_bentoml_fields(fields, record)
        facts = " ".join(f"{name}={one_line(str(value))}" for name, value in fields.items())
        line = f"{time} {record.levelname.lower():7} {one_line(record.getMessage())}" + (f"  {facts}" if facts else "")
        if not record.exc_info:
            return line
        # Text from outside must neither start a line nor steer a terminal. The lines of a traceback are indented.
        traceback = "\n".join(f"  {one_line(part)}" for part in self.formatException(record.exc_info).split("\n"))
        return f"{line}\n{traceback}"


def _escaped_for_json(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def configure_logs(form: Literal["json", "text"], level: str) -> None:
    """Send all log lines of this process, including BentoML's and uvicorn's, to standard error in one form."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonLineFormatter}, "text": {"()": TextFormatter}},
            "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": form}},
            "root": {"handlers": ["lines"], "level": "WARNING"},
            "loggers": {
                "protoserve": {"level": level.upper()},
                "bentoml": {"level": level.upper(), "handlers": [], "propagate": True},
                "uvicorn.error": {"level": "WARNING", "handlers": [], "propagate": True},
                "circus": {"level": "WARNING", "handlers": [], "propagate": True},
            },
        }
    )


def _drop_bentoml_fields(fields: dict[str, Any], record: logging.LogRecord) -> None:
    # In our own records, `request_id` is ours.
    if not record.name.startswith("protoserve"):
        for name in _BENTOML_FIELDS:
            fields.pop(name, None)
