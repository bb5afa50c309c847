"""Log lines: one JSON object each, with the id of the request that they are about."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any, Literal

from service.record import current_record

# What every record of `logging` has; everything else came as `extra`.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
# BentoML's filter adds these to all lines.
_BENTOML = frozenset({"levelname_bracketed", "component", "trace_msg", "request_id", "service_name"})


class JsonFormatter(logging.Formatter):
    """A line as JSON: time (UTC), level, logger, message, what was given as `extra`, and a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; values that JSON does not know are written as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _extra(record)
        if "request_id" not in line and (request := current_record().id) != "none":
            line["request_id"] = request
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, then what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        facts = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}" + (f"  {facts}" if facts else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logs(form: Literal["json", "text"], level: str) -> None:
    """Send all lines of this process, BentoML's and uvicorn's too, to standard error in one form."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}, "text": {"()": TextFormatter}},
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


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    ours = record.name.startswith("protoserve")
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _USUAL and not name.startswith("_") and (ours or name not in _BENTOML)
    }
