"""The records of a bundle's `parity.json`: the comparison of each target's file with the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError, model_serializer, model_validator

from protoserve.errors import BundleError
from protoserve.files import write_text
from protoserve.run.record import Record
from protoserve.schema import Contract

PARITY_FILE: Final = "parity.json"
# Each batch size has its own key in the file: `batch_1`, `batch_3`, …
_BATCH: Final = "batch_"


class Tolerance(Contract):
    """The largest absolute differences allowed: of natural logarithms, of logits and contributions, of similarities."""

    log_probability: float = 1e-3
    logit: float = 1e-3
    similarity: float = 1e-3


class BatchReport(Record):
    """The comparison at one batch size.

    `worst_difference` maps an output to its largest absolute difference, `agreement` an output to the share of its
    entries that are equal, in [0, 1], `near_ties` an output to the number of entries that differ but are equally right.
    `certain` is the share of pictures whose certificate holds; only routed graphs have it.
    """

    worst_difference: dict[str, float]
    agreement: dict[str, float]
    near_ties: dict[str, int]
    certain: float | None = None


class ResizeReport(Record):
    """The pixels of a graph that resizes, compared with the host's.

    The worst difference in grey levels, the share of pixels that differ, and the share of pictures for which the
    network predicts the same path from both.
    """

    worst_grey_levels: int
    pixels_differing: float
    same_path_as_host: float


class AccuracyPair(Record):
    """Accuracy of the network and of the target's file, level → share in [0, 1]."""

    network: dict[str, float]
    target: dict[str, float]


class Agreement(Record):
    """How answers agree with the network's on validation pictures; all values are shares in [0, 1] by level.

    - `accuracy` of the answers;
    - `same_node`: pictures for which they name the node that the network names;
    - `first_evidence_same`: of the pictures with evidence, those whose first evidence is the same prototype for the
      same node;
    - `evidence_kept`: of those with the same node, the pictures whose first prototype contributes, in the network, at
      least 90 % of what the network's own first one does.
    """

    accuracy: dict[str, float]
    same_node: dict[str, float]
    first_evidence_same: dict[str, float]
    evidence_kept: dict[str, float]


class ValidationReport(Record):
    """The comparison on `pictures` validation pictures.

    `loss_points` maps a level to the lost accuracy in percentage points. `same_node`, `first_evidence_same` and
    `evidence_kept` are those of `Agreement`. `unoptimised` is the same file without graph optimisation, `reencoded` the
    network itself after its pictures were saved as JPEG of quality 90. Reports of older versions lack what is None.
    """

    pictures: int
    accuracy: AccuracyPair
    loss_points: dict[str, float]
    same_node: dict[str, float] | None = None
    first_evidence_same: dict[str, float]
    evidence_kept: dict[str, float] | None = None
    unoptimised: Agreement | None = None
    reencoded: Agreement | None = None


class TargetReport(Contract):
    """The results of all checks of a target's file, on `pictures` sample pictures.

    `batches` maps a batch size to its comparison. `resize` exists for files that resize, `validation` for files of less
    precision than float32.
    """

    precision: str
    pictures: int
    tolerance: Tolerance
    resize: ResizeReport | None = None
    batches: dict[int, BatchReport]
    validation: ValidationReport | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_batches(cls, document: Any) -> Any:
        if not isinstance(document, dict) or "batches" in document:
            return document
        sizes = {key: key.removeprefix(_BATCH) for key in document if key.startswith(_BATCH)}
        batches = {size: document[key] for key, size in sizes.items()}
        return {**{key: value for key, value in document.items() if key not in sizes}, "batches": batches}

    @model_serializer(mode="plain")
    def _written(self) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name == "batches":
                document |= {f"{_BATCH}{size}": report.model_dump() for size, report in self.batches.items()}
            elif isinstance(value, Contract):
                document[name] = value.model_dump()
            elif value is not None:
                document[name] = value
        return document


_REPORTS: Final = TypeAdapter(dict[str, TargetReport])


def write_parity(directory: Path, reports: Mapping[str, TargetReport]) -> None:
    """Write `parity.json`, from a target's name to its report, into a bundle's folder."""
    document = {target: report.model_dump() for target, report in reports.items()}
    write_text(directory / PARITY_FILE, json.dumps(document, indent=1) + "\n")


def read_parity(directory: Path) -> dict[str, TargetReport]:
    """Read `parity.json` from a bundle's folder; raises BundleError if it is missing or damaged."""
    file = directory / PARITY_FILE
    try:
        return _REPORTS.validate_json(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file}: can't read it ({error.strerror}); export the bundle again") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: {key or 'JSON'}: {first['msg']}; export the bundle again") from error
