"""What an operator may set, from the environment (`PROTOSERVE_…`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from protoserve.errors import InputError
from protoserve.images import DEFAULT_LIMITS

PREFIX = "PROTOSERVE_"


class Settings(BaseSettings):
    """The service's settings; each field is the variable `PROTOSERVE_<FIELD>`.

    There is no `PROTOSERVE_PORT`, and unknown `PROTOSERVE_…` variables are left alone: Kubernetes sets
    `PROTOSERVE_PORT`, `PROTOSERVE_SERVICE_HOST` and more in every pod beside a service named `protoserve`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    bundle: Path | None = Field(
        default=None,
        description="the folder of a bundle or an ensemble, instead of a published model (for development)",
    )
    model: str | None = Field(
        default=None, description="the tag of a published model, name:version or name; by default the newest"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=1024, description="threads of one inference, per worker")
    workers: int = Field(default=1, ge=1, le=1024, description="processes that answer requests")
    max_bytes: int = Field(default=DEFAULT_LIMITS.bytes, ge=1, description="largest request body, in bytes")
    max_pixels: int = Field(default=DEFAULT_LIMITS.pixels, ge=1, description="largest picture, in pixels")
    max_images: int = Field(default=16, ge=1, le=64, description="most pictures in one batch request")
    read_seconds: float = Field(default=30.0, gt=0, description="longest time to receive one request body")
    wait_seconds: float = Field(
        default=10.0, gt=0, description="longest time that a request waits for a turn, at each of its stages"
    )
    metrics_directory: Path | None = Field(
        default=None,
        description="where the workers of one server keep their counts; BentoML's own place is shared by all "
        "servers of a BENTOML_HOME and emptied whenever one starts",
    )


def read_settings() -> Settings:
    """The settings of this process's environment; raises InputError naming the variable that does not fit."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise InputError(f"{name}={first['input']!r}: {first['msg']}; correct or unset it") from error
