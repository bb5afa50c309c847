"""Feedback for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from protoserve.feedback.record import FeedbackRecord

MODEL: Final = "sha256:" + "ab" * 32
START: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def record(number: int = 0, **changes: Any) -> FeedbackRecord:
    """Feedback on the picture and the answer of this number, received so many seconds after `START`."""
    fields: dict[str, Any] = {
        "answer": f"{number:032x}",
        "model": MODEL,
        "image": f"{number:064x}",
        "path": ["Fruit", "Apple"],
        "verdict": "right",
        "at": START + timedelta(seconds=number),
        "request": f"request-{number}",
        "key": "kiosk",
        "checked": True,
    }
    return FeedbackRecord.model_validate(fields | changes)
