"""Bundles in the BentoML model store: publishes each content once, and finds it by tag."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bentoml
from bentoml.exceptions import BentoMLException, NotFound

from protoserve.bundle.ensemble import read_model
from protoserve.errors import InputError

LABEL: Final = "protoserve"
FOLDER: Final = "bundle"
_VERSION_DIGITS: Final = 16


@dataclass(frozen=True)
class Published:
    """A bundle in the model store: its tag (`name:version`), its folder there, and whether it is new."""

    tag: str
    directory: Path
    created: bool


def publish_bundle(directory: Path) -> Published:
    """Verify a bundle, or an ensemble's folder, and copy it into the BentoML model store.

    The tag is the bundle's name and the first 16 digits of its content hash, so publishing the same content
    again changes nothing. Raises InputError for a missing folder, BundleError for an incomplete bundle.
    """
    bundle = read_model(directory)
    tag = f"{tag_name(bundle.name)}:{bundle.version.removeprefix('sha256:')[:_VERSION_DIGITS]}"
    try:
        stored = bentoml.models.get(tag)
    except NotFound:
        pass
    else:
        # The store may have been altered since; verify its copy before calling it published.
        read_model(bundle_directory(stored))
        return Published(tag, bundle_directory(stored), created=False)
    with bentoml.models.create(
        tag,
        labels={LABEL: "bundle", "kind": bundle.kind},
        metadata={"version": bundle.version, "metrics": bundle.metrics.model_dump()},
    ) as model:
        shutil.copytree(directory, model.path_of(FOLDER))
    return Published(tag, bundle_directory(bentoml.models.get(tag)), created=True)


def published_model(tag: str | None) -> Any:
    """Return the published model of `tag` (`name:version`, or `name` for its newest); None means the newest of all.

    Raises bentoml.exceptions.NotFound when there is none, because BentoML's own commands show this error.
    """
    if tag is not None:
        try:
            model = bentoml.models.get(tag)
        except BentoMLException as error:
            raise NotFound(
                f"PROTOSERVE_MODEL={tag!r} is not in the model store ({error}); 'bentoml models list' lists its models"
            ) from error
        if LABEL not in model.info.labels:
            raise NotFound(
                f"the model {model.tag} is not a ProtoServe bundle; publish one with 'protoserve publish BUNDLE'"
            )
        return model
    models = [model for model in bentoml.models.list() if LABEL in model.info.labels]
    if not models:
        raise NotFound(
            "the model store holds no ProtoServe bundle; publish one with 'protoserve publish BUNDLE', or "
            "set PROTOSERVE_BUNDLE to a bundle's folder"
        )
    return max(models, key=lambda model: model.info.creation_time)


def bundle_directory(model: Any) -> Path:
    """Return the bundle's folder inside a published model."""
    return Path(model.path_of(FOLDER))


def tag_name(name: str) -> str:
    """Convert a bundle's name to BentoML's rules for tags: lower case letters, digits, `_`, `-`, `.`; at most 63.

    Raises InputError when no character is left.

    >>> tag_name("Grocery Store (v2)")
    'grocery-store-v2'
    """
    tag = re.sub(r"[^a-z0-9_.-]+", "-", name.lower())[:63].strip("-_.")
    if not tag:
        raise InputError(f"the bundle's name {name!r} has no letters or digits for a tag; export it under another name")
    return tag
