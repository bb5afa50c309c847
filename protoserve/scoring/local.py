"""Offline scoring of many pictures into one Parquet file.

A job is divided into parts, each written atomically, so that an interrupted job can be resumed. A picture that can't be
read gets a row with its `error`; the others are scored. Needs the extra `score` (pyarrow).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from protoserve.cores import usable_cores
from protoserve.data.folders import image_files
from protoserve.data.tables import is_table, table_columns
from protoserve.errors import InputError, nearest
from protoserve.files import make_folder, new_file, remove_drafts, write_text
from protoserve.images.decoding import IMAGE_SUFFIXES
from protoserve.images.fitting import FittedImage
from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction

PART: Final = 1000
BATCH: Final = 16
JOB: Final = "job.json"

_LEVEL = pyarrow.struct(
    [
        ("node", pyarrow.string()),
        ("probability", pyarrow.float32()),
        ("conditional", pyarrow.float32()),
        ("known", pyarrow.bool_()),
        ("logit", pyarrow.float32()),
    ]
)
_EVIDENCE = pyarrow.struct(
    [
        ("level", pyarrow.int16()),
        ("prototype", pyarrow.int32()),
        ("similarity", pyarrow.float32()),
        ("weight", pyarrow.float32()),
        ("contribution", pyarrow.float32()),
        ("box", pyarrow.list_(pyarrow.int32(), 4)),
    ]
)
SCHEMA: Final = pyarrow.schema(
    [
        ("image", pyarrow.string()),
        ("error", pyarrow.string()),
        ("code", pyarrow.string()),
        ("model", pyarrow.string()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("node", pyarrow.string()),
        ("probability", pyarrow.float32()),
        ("known_through_level", pyarrow.int16()),
        ("levels", pyarrow.list_(_LEVEL)),
        ("evidence", pyarrow.list_(_EVIDENCE)),
    ]
)


@dataclass(frozen=True)
class Job:
    """The pictures to score, the model and the options. Equal jobs have equal parts, on any machine."""

    root: str
    images: tuple[str, ...]
    """Relative to `root`, or absolute; in the order of the rows."""
    model: str
    """The content version of the bundle."""
    top_k: int
    """Evidence per level; 0 leaves it out."""
    part: int = PART
    """Pictures per part."""

    @property
    def parts(self) -> range:
        """The indices of the parts."""
        return range((len(self.images) + self.part - 1) // self.part)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the whole job, in hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def of_part(self, index: int) -> tuple[str, ...]:
        """Return the pictures of a part."""
        return self.images[index * self.part : (index + 1) * self.part]


def find_images(source: Path) -> tuple[Path, tuple[str, ...]]:
    """Find the pictures to score: all picture files below a folder, sorted, or the column `image` of a CSV or Parquet
    file.

    Returns the folder that the names are relative to, and the names. Raises InputError if there are no pictures or the
    table can't be read.
    """
    if source.is_dir():
        images = tuple(sorted(file.relative_to(source).as_posix() for file in image_files(source)))
        if not images:
            raise InputError(f"{source}: holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}); give another folder")
        return source.resolve(), images
    if not is_table(source):
        raise InputError(f"{source}: is neither a folder nor a table; give a folder, a .csv or a .parquet file")
    columns = table_columns(source)
    if "image" not in columns:
        hint = nearest("image", columns)
        raise InputError(f"{source}: no column 'image'{hint}; it has {', '.join(columns) or 'none'}")
    if not columns["image"]:
        raise InputError(f"{source}: holds no rows; add one per picture")
    if "" in columns["image"]:
        row = columns["image"].index("") + 1
        raise InputError(f"{source}, row {row}, column 'image': is empty; fill it or remove the row")
    return source.parent.resolve(), tuple(columns["image"])


def score_part(
    job: Job, index: int, classifier: Classifier, advance: Callable[[int], None] = lambda pictures: None
) -> Any:
    """Score one part of a job; returns a pyarrow table of SCHEMA with a row per picture, in order.

    Calls `advance(pictures)` after each batch. Raises as the engine does; a picture that can't be read gets a row with
    its error.
    """
    rows: list[dict[str, Any]] = []
    for batch in _decoded(job, index, classifier):
        fitted = [picture for _, picture in batch if isinstance(picture, FittedImage)]
        predictions = iter(classifier.predict_fitted(fitted, top_k=job.top_k, alternatives=0))
        for name, picture in batch:
            if isinstance(picture, FittedImage):
                rows.append(_row(name, next(predictions)))
            else:
                rows.append({"image": name, "error": str(picture), "code": getattr(picture, "code", "unreadable_file")})
        advance(len(batch))
    return pyarrow.Table.from_pylist(rows, schema=SCHEMA)


def write_part(table: Any, directory: Path, index: int) -> None:
    """Write a part's table into the folder of parts, atomically."""
    with new_file(part_file(directory, index)) as draft:
        parquet.write_table(table, draft, compression="zstd")


def part_file(directory: Path, index: int) -> Path:
    """Return the file of a part."""
    return directory / f"{index:06d}.parquet"


def open_parts(job: Job, output: Path, *, restart: bool = False) -> tuple[Path, list[int]]:
    """Open or make the folder of a job's parts, beside its output; returns it and the indices of the missing parts.

    With `restart`, removes all parts first. Raises InputError if the folder contains another job's parts.
    """
    directory = output.with_name(output.name + ".parts")
    description = directory / JOB
    if restart:
        shutil.rmtree(directory, ignore_errors=True)
    if directory.is_dir() and any(not file.name.startswith(".") for file in directory.iterdir()):
        # The description is written first and atomically, so a folder without it is not a job's.
        stored = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
        if stored.get("fingerprint") != job.fingerprint:
            raise InputError(
                f"{directory} holds parts of another job (other pictures, model or options); repeat the command with "
                "that job's options, give another --output, or start over with --restart"
            )
    else:
        make_folder(directory)
        write_text(description, json.dumps({"fingerprint": job.fingerprint, "model": job.model}))
    remove_drafts(directory)
    return directory, [index for index in job.parts if not part_file(directory, index).is_file()]


def join_parts(job: Job, directory: Path, output: Path) -> tuple[int, int]:
    """Join all parts into one file, written atomically, and remove their folder; returns the numbers of rows and of
    errors."""
    rows = errors = 0
    with new_file(output) as draft, parquet.ParquetWriter(draft, SCHEMA, compression="zstd") as writer:
        for index in job.parts:
            table = parquet.read_table(part_file(directory, index), schema=SCHEMA)
            rows += table.num_rows
            errors += table.num_rows - table.column("error").null_count
            writer.write_table(table)
    shutil.rmtree(directory)
    return rows, errors


def _decoded(job: Job, index: int, classifier: Classifier) -> Iterator[list[tuple[str, FittedImage | InputError]]]:
    """Yield the part's pictures in batches; threads decode up to three batches ahead."""
    root = Path(job.root)

    def read(name: str) -> FittedImage | InputError:
        try:
            return classifier.fit(root / name)
        except InputError as error:
            return error

    waiting: deque[tuple[str, Future[FittedImage | InputError]]] = deque()
    names = iter(job.of_part(index))
    with ThreadPoolExecutor(usable_cores()) as threads:
        batch: list[tuple[str, FittedImage | InputError]] = []
        while True:
            while len(waiting) < BATCH * 3 and (name := next(names, None)) is not None:
                waiting.append((name, threads.submit(read, name)))
            if not waiting:
                break
            name, picture = waiting.popleft()
            batch.append((name, picture.result()))
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch


def _row(name: str, prediction: Prediction) -> dict[str, Any]:
    last = prediction.levels[-1]
    return {
        "image": name,
        "model": prediction.model.version,
        "width": prediction.image.width,
        "height": prediction.image.height,
        "node": last.node,
        "probability": last.probability,
        "known_through_level": prediction.known_through_level,
        "levels": [
            level.model_dump(include={"node", "probability", "conditional", "known", "logit"})
            for level in prediction.levels
        ],
        "evidence": [
            {
                "level": level.level,
                **evidence.model_dump(include={"prototype", "similarity", "weight", "contribution"}),
                "box": list(evidence.box),
            }
            for level in prediction.levels
            for evidence in level.evidence
        ],
    }
