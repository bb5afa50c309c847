"""What all records in the JSON files of a run have in common."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

from protoserve.schema import Contract


class Record(Contract):
    """The base of these records: frozen, rejects unknown keys, and writes only the fields that were set."""

    model_config = ConfigDict(
        serialize_by_alias=True, validate_by_name=True, validate_by_alias=True, ser_json_inf_nan="constants"
    )

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        kept = {fields[name].alias or name for name in self.model_fields_set}
        return {name: value for name, value in write(self).items() if name in kept}
