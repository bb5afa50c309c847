"""What an answer came from: the model's version, the picture and the options, and an id made of these.

They determine the answer, so that it can be made again (see `protoserve.replay`), and a service needs to keep nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from protoserve.errors import InputError, nearest
from protoserve.images.fitting import FittedImage
from protoserve.inference.options import PredictOptions, ResolvedOptions
from protoserve.schema import Prediction

_ID_LENGTH: Final = 32
# Recorded also where they have their defaults, which a later version may change.
_ALWAYS: Final = ("alternatives", "maps")


def identified(prediction: Prediction, image: FittedImage, options: ResolvedOptions) -> Prediction:
    """Return the prediction with its id, the hash of its picture, and its options."""
    record = recorded(options)
    picture = prediction.image.model_copy(update={"sha256": image.sha256, "drafted": image.drafted})
    name = answer_id(prediction.model.version, image.sha256, record, drafted=image.drafted)
    return prediction.model_copy(update={"id": name, "image": picture, "options": record})


def answer_id(version: str, sha256: str | None, options: Mapping[str, Any], *, drafted: bool = False) -> str | None:
    """Return the id of the answer that a model's `version` gives to a picture: 32 hexadecimal digits.

    None for a picture without a hash. `options` are those of `recorded`.
    """
    if sha256 is None:
        return None
    text = json.dumps([version, sha256, drafted, options], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


def recorded(options: ResolvedOptions) -> dict[str, Any]:
    """Return the options as JSON: those of size, and all others that are not at their defaults."""
    record: dict[str, Any] = {"top_k": options.top_k}
    for field in fields(PredictOptions):
        value = getattr(options.given, field.name)
        if isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = list(value)
        is_default = value == field.default or value in ([], {})
        if field.name not in record and (field.name in _ALWAYS or not is_default):
            record[field.name] = value
    return record


def options_of(record: Mapping[str, Any]) -> PredictOptions:
    """Return the options that `recorded` wrote.

    Raises InputError for an option that this version does not have, and for a value of another type.
    """
    known = {field.name for field in fields(PredictOptions)}
    if unknown := sorted(set(record) - known):
        raise InputError(
            f"the answer has the option {unknown[0]!r}{nearest(unknown[0], known)}, which this version does not know; "
            "update it"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    try:
        return TypeAdapter(PredictOptions).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"the answer's option {name} is {first['input']!r}: {first['msg']}") from error
