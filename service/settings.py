"""What an operator may set, from the environment (`PROTOSERVE_…`); docs/settings.md is made from it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from protoserve.errors import InputError
from protoserve.images import DEFAULT_LIMITS, FORMATS
from service.access import Key, read_key

PREFIX = "PROTOSERVE_"


class Settings(BaseSettings):
    """The service's settings; each field is the variable `PROTOSERVE_<FIELD>`.

    There is no `PROTOSERVE_PORT`, and unknown `PROTOSERVE_…` variables are left alone: Kubernetes sets
    `PROTOSERVE_PORT`, `PROTOSERVE_SERVICE_HOST` and more in every pod beside a service named `protoserve`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    # What answers.
    bundle: Path | None = Field(
        default=None,
        description="the folder of a bundle or an ensemble, or a link to one, instead of a published model",
    )
    model: str | None = Field(
        default=None, description="the tag of a published model, name:version or name; by default the newest"
    )
    reload_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="how often to look for another model (a newer publication, or where the link in "
        "PROTOSERVE_BUNDLE points now) and change to it; 0 never looks",
    )

    # What it computes with.
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the graph runs")
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="processes that answer requests; on a CPU one per core, with one lane each, answer the most",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads of one inference; by default the cores that it may use, shared among workers",
    )
    lanes: int = Field(default=2, ge=1, le=256, description="inferences at a time, per worker")
    max_batch: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="most pictures in one inference; they are put together only while all lanes are busy. By default 1 "
        "on a CPU and 16 on a GPU",
    )

    # What it takes.
    max_bytes: int = Field(default=DEFAULT_LIMITS.bytes, ge=1, description="largest request body, in bytes")
    max_pixels: int = Field(default=DEFAULT_LIMITS.pixels, ge=1, description="largest picture, in pixels")
    max_side: int = Field(default=DEFAULT_LIMITS.side, ge=1, description="longest side of a picture, in pixels")
    max_images: int = Field(default=16, ge=1, le=64, description="most pictures in one batch request")
    formats: Annotated[tuple[str, ...], NoDecode] = Field(
        default=FORMATS, description="picture formats to read, with commas between them"
    )
    jpeg_draft: bool = Field(
        default=False,
        description="reduce large JPEGs while decoding them: quicker, answers differ a little (benchmarks/draft.py)",
    )
    read_seconds: float = Field(default=30.0, gt=0, description="longest time to receive one request body")
    header_seconds: float = Field(default=10.0, gt=0, description="longest time to receive a request's headers")

    # How much at a time.
    max_queue: int = Field(
        default=128, ge=1, description="most pictures per worker that are received and not yet answered; more get 503"
    )
    max_memory: int = Field(
        default=256_000_000,
        ge=1,
        description="most bytes of request bodies that a worker holds at a time; more get 503",
    )
    wait_seconds: float = Field(
        default=10.0, gt=0, description="longest time that a picture waits for its decoding or its inference; then 503"
    )
    answer_seconds: float = Field(
        default=60.0, gt=0, description="longest time from a request's last byte to its answer; then 504"
    )

    # Who may ask.
    api_keys: Annotated[tuple[Key, ...], NoDecode] = Field(
        default=(),
        description="the keys that may ask, as NAME:HASH with commas between them; 'protoserve key NAME' makes one. "
        "Without any, everybody may",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="the origins whose pages may call from a browser, with commas between them, or *"
    )

    # How it tells.
    log_format: Literal["json", "text"] = Field(default="json", description="the form of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least to log")
    metrics_directory: Path | None = Field(
        default=None,
        description="where the workers of one server keep their counts; BentoML's own place is shared by all "
        "servers of a BENTOML_HOME and emptied whenever one starts",
    )
    otlp_endpoint: str | None = Field(
        default=None, description="where traces go, such as http://collector:4318/v1/traces (extra 'tracing')"
    )
    trace_share: float = Field(default=1.0, ge=0, le=1, description="the share of requests to trace")

    @field_validator("formats", "cors_origins", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        return _parts(given) if isinstance(given, str) else given

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_keys(cls, given: Any) -> Any:
        return tuple(map(read_key, _parts(given))) if isinstance(given, str) else given

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        upper = tuple(name.upper() for name in given)
        if not upper or not set(upper) <= set(FORMATS):
            raise ValueError(f"formats are some of {', '.join(FORMATS)}")
        return upper

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.max_queue < self.max_images:
            raise ValueError(
                f"PROTOSERVE_MAX_QUEUE={self.max_queue} is below PROTOSERVE_MAX_IMAGES={self.max_images}, so a full "
                "batch request could never be answered"
            )
        if self.max_memory < self.max_bytes:
            raise ValueError(
                f"PROTOSERVE_MAX_MEMORY={self.max_memory} is below PROTOSERVE_MAX_BYTES={self.max_bytes}, so the "
                "largest request could never be read"
            )
        return self

    def shown(self) -> dict[str, Any]:
        """All settings for a log, with the names of keys and without their hashes."""
        values = self.model_dump(mode="json", exclude={"api_keys"})
        return {**values, "api_keys": [key.name for key in self.api_keys]}


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_settings() -> Settings:
    """The settings of this process's environment; raises InputError naming the variable that does not fit."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise InputError(f"{message}; correct one of them") from None
        field = str(first["loc"][0])
        name = PREFIX + field.upper()
        # A key belongs into no log, right or wrong.
        given = "" if field == "api_keys" else f"={os.environ.get(name, first['input'])!r}"
        raise InputError(f"{name}{given}: {message}; correct or unset it") from None


def settings_table() -> str:
    """The Markdown table of docs/settings.md; `python -m service.settings` prints it."""
    lines = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is None or default == ():
            shown = ""
        elif isinstance(default, tuple):
            shown = f"`{','.join(default)}`"
        else:
            whole = isinstance(default, int) and not isinstance(default, bool)
            shown = f"`{default:_}`" if whole else f"`{default}`"
        kind = field.annotation
        choices = getattr(kind, "__args__", ()) if getattr(kind, "__origin__", None) is Literal else ()
        words = f": {', '.join(choices)}" if choices else ""
        lines.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description}{words} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(settings_table())
