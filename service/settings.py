"""Settings of the service, from the environment (`PROTOSERVE_…`). docs/settings.md is generated from this module."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from protoserve.cores import usable_cores, usable_memory
from protoserve.device import Device, Routed
from protoserve.errors import InputError
from protoserve.feedback.store import shown_place
from protoserve.images.formats import readable_formats
from protoserve.images.signatures import WEB_FORMATS
from service.api_keys import ApiKey, parse_key

PREFIX: Final = "PROTOSERVE_"
# The most memory that a small image takes to decode, in bytes.
THREAD_MEMORY: Final = 100_000_000
# BentoML's supervisor; a worker with its model and two decoding processes, at least; those processes beside a worker of
# any size, with what inferences take at their peak (docs/decisions/0004-decoding.md).
_SUPERVISOR_MEMORY: Final = 150_000_000
_WORKER_MEMORY: Final = 330_000_000
_PROCESSES_MEMORY: Final = 150_000_000
_MOST_DECODING: Final = 1_000_000_000
_LARGE_DECODING: Final = 650_000_000
# docs/decisions/0002-batching.md gives the reasons.
DEFAULT_BATCH: Final = {"cpu": 1, "cuda": 16}


class Settings(BaseSettings):
    """The service's settings. Each field is the variable `PROTOSERVE_<FIELD>`.

    `PROTOSERVE_PORT` does not exist, and unknown `PROTOSERVE_…` variables are ignored: Kubernetes sets
    `PROTOSERVE_PORT`, `PROTOSERVE_SERVICE_HOST` and more in every pod beside a service named `protoserve`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    # The model.
    bundle: Path | None = Field(
        default=None,
        description="folder of a bundle or an ensemble, or a link to one; takes precedence over published models",
    )
    model: str | None = Field(
        default=None, description="tag of a published model, name:version or name; the default is the newest"
    )
    reload_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="interval between checks for another model (a newer publication, or a new target of the link in "
        "PROTOSERVE_BUNDLE), in seconds; 0 disables the checks",
    )

    # Compute.
    device: Device = Field(default="auto", description="device that runs the graph")
    routed: Routed = Field(
        default="auto",
        description="graph that answers on a CPU: `auto` uses the bundle's routed graph where there is one and its "
        "certificate holds, `off` the full graph alone; answers are the same",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="worker processes; on a CPU, one per core with PROTOSERVE_LANES=1 gives the highest throughput",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads of one inference; the default divides the usable cores among the workers",
    )
    lanes: int = Field(default=2, ge=1, le=256, description="concurrent inferences per worker")
    max_batch: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="most images in one inference; images are batched only while all lanes are busy. The default is "
        f"{DEFAULT_BATCH['cpu']} on a CPU and {DEFAULT_BATCH['cuda']} on a GPU",
    )

    # Uploads.
    max_bytes: int = Field(default=20_000_000, ge=1, description="largest request body, in bytes")
    max_pixels: int = Field(default=200_000_000, ge=1, description="largest image, in pixels")
    max_side: int = Field(default=20_000, ge=1, description="longest side of an image, in pixels")
    max_images: int = Field(default=16, ge=1, le=64, description="most images in one batch request")
    formats: Annotated[tuple[str, ...], NoDecode] = Field(
        default=WEB_FORMATS, description="accepted image formats, separated by commas"
    )
    jpeg_draft: bool = Field(
        default=False,
        description="scale large JPEGs down while decoding them: faster, but answers differ slightly "
        "(benchmarks/service/draft.py)",
    )
    read_seconds: float = Field(default=30.0, gt=0, description="longest time to receive a request body, in seconds")
    header_seconds: float = Field(
        default=10.0, gt=0, description="longest time to receive a request's headers, in seconds"
    )
    write_seconds: float = Field(
        default=30.0,
        gt=0,
        description="longest time that a client may take no part of its answer, in seconds; then its connection is "
        "closed",
    )

    # Back-pressure.
    max_connections: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="most connections per worker; above it, the one that is idle for longest is closed, and if none "
        "is, requests other than probes get 503",
    )
    max_queue: int = Field(
        default=128,
        ge=1,
        description="most images per worker that are received but not yet answered; above it, 503. "
        "One client (an API key, or else an address) gets at most three quarters of what the others leave",
    )
    max_memory: int = Field(
        default=128_000_000,
        ge=1,
        description="most bytes of request bodies that a worker holds at a time; above it, 503",
    )
    max_decoding: int | None = Field(
        default=None,
        ge=2 * THREAD_MEMORY,
        description="most bytes of memory in which a worker decodes images at a time; the largest image may take about "
        "two thirds of them. The default is what the container's memory limit leaves beside the processes and "
        f"PROTOSERVE_MAX_MEMORY, at most {_MOST_DECODING:,} or {THREAD_MEMORY:,} per core and {_LARGE_DECODING:,}",
    )
    decode_seconds: float = Field(
        default=10.0, gt=0, description="longest time to decode a large image once it has started, in seconds; then 504"
    )
    wait_seconds: float = Field(
        default=10.0,
        gt=0,
        description="longest time that an image waits for decoding or inference to start, in seconds; after it, 503",
    )
    answer_seconds: float = Field(
        default=60.0, gt=0, description="longest time from a request's last byte to its answer, in seconds; then 504"
    )

    # Access.
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        default=(),
        description="accepted API keys, as NAME:HASH separated by commas; 'protoserve key NAME' makes one. Without "
        "any, requests need no key",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins whose pages may call the service from a browser, separated by commas, or *"
    )

    # Feedback.
    feedback: str | None = Field(
        default=None,
        description="file of JSON lines, or URL of a database (extra 'feedback'), that keeps the feedback of `POST "
        "/v1/feedback`; needs API keys. Without it, there is no such route",
    )
    feedback_pictures: Path | None = Field(
        default=None,
        description="folder that keeps the pictures that clients send with their feedback, by SHA-256; without it, no "
        "picture is ever kept",
    )
    feedback_bytes: int = Field(
        default=1_000_000_000,
        ge=1,
        description="most bytes of the file of feedback, and of the pictures together; above it, 507",
    )
    feedback_per_minute: int = Field(
        default=600, ge=1, description="most feedback and pictures per minute, API key and worker; above it, 429"
    )

    # Logs, metrics, traces.
    log_format: Literal["json", "text"] = Field(default="json", description="format of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="lowest level to log")
    metrics_directory: Path | None = Field(
        default=None,
        description="folder in which every server makes one of its own for its workers' metrics; the default is the "
        "folder for temporary files",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port for Prometheus alone, on all addresses and without API keys; /metrics is then not among the "
        "service's routes",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="collector that receives traces, such as http://collector:4318/v1/traces (extra 'tracing')",
    )
    trace_share: float = Field(default=1.0, ge=0, le=1, description="share of requests to trace")

    @field_validator("formats", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _split_list(value) if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: Any) -> Any:
        return tuple(map(parse_key, _split_list(value))) if isinstance(value, str) else value

    @field_validator("formats")
    @classmethod
    def _check_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        formats = tuple(name.upper() for name in value)
        if not formats or not set(formats) <= set(readable_formats()):
            raise ValueError(f"choose formats from {', '.join(readable_formats())}")
        return formats

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
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
        if self.feedback is not None and not self.api_keys:
            raise ValueError(
                "PROTOSERVE_FEEDBACK is set without PROTOSERVE_API_KEYS, so strangers could write to it; make a key "
                "with 'protoserve key NAME'"
            )
        if self.feedback_pictures is not None and self.feedback is None:
            raise ValueError(
                "PROTOSERVE_FEEDBACK_PICTURES is set without PROTOSERVE_FEEDBACK, so there is no feedback to keep "
                "pictures of"
            )
        return self

    def batch_limit(self, device: Literal["cpu", "cuda"]) -> int:
        """Return the most images in one inference on `device`. Serving and warming up both use this rule."""
        return self.max_batch if self.max_batch is not None else DEFAULT_BATCH[device]

    def inference_threads(self) -> int:
        """Return the CPU threads of one inference."""
        return self.threads or max(1, usable_cores() // self.workers)

    def decoding_budget(self, memory: int | None = None, worker: int = 0) -> int:
        """Return the bytes of memory in which a worker decodes images, in a container of `memory` bytes, where the
        worker with its model occupies `worker` bytes.

        By default, the container is this process's own, if it has a limit.
        """
        if self.max_decoding is not None:
            return self.max_decoding
        # Without a limit, every core decodes an ordinary photograph, and one large image beside them.
        most = max(_MOST_DECODING, usable_cores() * THREAD_MEMORY // self.workers + _LARGE_DECODING)
        memory = usable_memory() if memory is None else memory
        if memory is None:
            return most
        occupied = max(_WORKER_MEMORY, worker + _PROCESSES_MEMORY)
        share = (memory - _SUPERVISOR_MEMORY) // self.workers - occupied - self.max_memory
        return min(max(share, 2 * THREAD_MEMORY), most)

    def for_log(self) -> dict[str, Any]:
        """Return all settings for a log line, with the names of API keys but not their hashes, and no password."""
        values = self.model_dump(mode="json", exclude={"api_keys"})
        if self.feedback is not None:
            values["feedback"] = shown_place(self.feedback)
        return {**values, "api_keys": [key.name for key in self.api_keys]}


def _split_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_settings() -> Settings:
    """Read the settings of this process's environment. Raises InputError that names an invalid variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise InputError(f"{message}; correct one of them") from None
        field = str(first["loc"][0])
        name = PREFIX + field.upper()
        # Keep API keys, valid or not, out of logs.
        value = "" if field in {"api_keys", "feedback"} else f"={os.environ.get(name, first['input'])!r}"
        raise InputError(f"{name}{value}: {message}; correct or unset it") from None


def settings_table() -> str:
    """Return the Markdown table of docs/settings.md; `python -m service.settings` prints it."""
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
        annotation = field.annotation
        choices = getattr(annotation, "__args__", ()) if getattr(annotation, "__origin__", None) is Literal else ()
        suffix = f": {', '.join(choices)}" if choices else ""
        lines.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description}{suffix} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(settings_table())
