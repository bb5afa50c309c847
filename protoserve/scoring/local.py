"""Offline scoring of many pictures into one Parquet file.

A job is divided into parts, each written atomically, so that an interrupted job can be resumed. A picture that can't be
read gets a row with its `error`; the others are scored. Needs the extra `score` (pyarrow).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow
from pyarrow import parquet

from protoserve.cores import usable_cores
from protoserve.data.folders import PassedOver, find_pictures, told
from protoserve.data.tables import is_table, table_columns
from protoserve.errors import InputError, nearest
from protoserve.files import DRAFT, make_folder, new_file, remove_drafts, write_text
from protoserve.images.fitting import FittedImage
from protoserve.images.formats import picture_suffixes
from protoserve.inference.classifier import Classifier
from protoserve.inference.options import OptionKeywords
from protoserve.names import visible
from protoserve.replay.scored import OPTIONS
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
_ANSWER = pyarrow.struct(
    [
        ("node", pyarrow.string()),
        ("level", pyarrow.int16()),
        ("precision", pyarrow.float64()),
        ("reason", pyarrow.string()),
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
        ("sha256", pyarrow.string()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("node", pyarrow.string()),
        ("probability", pyarrow.float32()),
        ("known_through_level", pyarrow.int16()),
        ("levels", pyarrow.list_(_LEVEL)),
        ("evidence", pyarrow.list_(_EVIDENCE)),
        ("answer", _ANSWER),
    ]
)
# That of parts and of the result; parts of another one are not resumed.
FORMAT: Final = 2


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
    precision: float | None = None
    """That of the answers; None for the bundle's own."""
    format: int = FORMAT

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


class Found(NamedTuple):
    """The pictures to score: `images` are paths relative to `root`, or absolute; `passed_over` counts the files that
    are not among them, by reason (see `protoserve.data.folders.REASONS`)."""

    root: Path
    images: tuple[str, ...]
    passed_over: PassedOver


def find_images(source: Path) -> Found:
    """Find the pictures to score: all picture files below a folder, sorted, or the column `image` of a CSV or Parquet
    file.

    Raises InputError if there are no pictures, for a loop of links, and if the table can't be read.
    """
    if source.is_dir():
        found = find_pictures(source)
        images = tuple(sorted(file.relative_to(source).as_posix() for file in found.files))
        if not images:
            others = f" ({told(found.passed_over)})" if found.passed_over else ""
            raise InputError(
                f"{source}: holds no pictures{others}; give a folder with {', '.join(sorted(picture_suffixes()))}"
            )
        return Found(source.resolve(), images, found.passed_over)
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
    return Found(source.parent.resolve(), tuple(columns["image"]), {})


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
        predictions = iter(classifier.predict_fitted(fitted, **_options(job)))
        for name, picture in batch:
            if isinstance(picture, FittedImage):
                rows.append(_row(name, next(predictions)))
            else:
                code = getattr(picture, "code", "unreadable_file")
                rows.append({"image": visible(name), "error": visible(str(picture)), "code": code})
        advance(len(batch))
    return pyarrow.Table.from_pylist(rows, schema=SCHEMA)


def _options(job: Job) -> OptionKeywords:
    return {"top_k": job.top_k, "alternatives": 0, "precision": job.precision}


def write_part(table: Any, directory: Path, index: int) -> None:
    """Write a part's table into the folder of parts, atomically."""
    # pyarrow opens no path that is not UTF-8.
    with new_file(part_file(directory, index)) as draft, draft.open("wb") as stream:
        parquet.write_table(table, stream, compression="zstd")


def part_file(directory: Path, index: int) -> Path:
    """Return the file of a part."""
    return directory / f"{index:06d}.parquet"


def open_parts(job: Job, output: Path, *, restart: bool = False) -> tuple[Path, list[int]]:
    """Open or make the folder of a job's parts, beside its output; returns it and the indices of the missing parts.

    With `restart`, removes all parts first. Raises InputError if the folder contains another job's parts, or, with
    `restart`, anything that is not a job's.
    """
    directory = output.with_name(output.name + ".parts")
    description = directory / JOB
    if restart and directory.is_dir():
        _remove_parts(directory)
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


def _remove_parts(directory: Path) -> None:
    """Remove a folder of parts; raises InputError if it holds anything that a job did not write."""
    others = [
        file.name
        for file in sorted(directory.iterdir())
        if file.is_dir() or not (file.name == JOB or file.suffix == ".parquet" or file.name.startswith(DRAFT))
    ]
    parts = [file for file in directory.iterdir() if file.suffix == ".parquet"]
    if others or directory.is_symlink() or (parts and not (directory / JOB).is_file()):
        stranger = others[0] if others else (parts[0].name if parts else "a link")
        raise InputError(
            f"{directory}: --restart removes only the parts of a job, and this folder holds {stranger!r}; move it away "
            "or give another --output"
        )
    shutil.rmtree(directory)


def join_parts(job: Job, directory: Path, output: Path, passed_over: PassedOver | None = None) -> tuple[int, int]:
    """Join all parts into one file, written atomically, and remove their folder; returns the numbers of rows and of
    errors. The file's metadata keep `passed_over` and the options of the answers as JSON, under the keys
    `protoserve.passed_over` and `protoserve.options`."""
    rows = errors = 0
    metadata = {b"protoserve.passed_over": json.dumps(dict(passed_over or {})), OPTIONS: json.dumps(_recorded(job))}
    schema = SCHEMA.with_metadata(metadata)
    with (
        new_file(output) as draft,
        draft.open("wb") as stream,
        parquet.ParquetWriter(stream, schema, compression="zstd") as writer,
    ):
        for index in job.parts:
            with part_file(directory, index).open("rb") as part:
                table = parquet.read_table(part, schema=SCHEMA)
            rows += table.num_rows
            errors += table.num_rows - table.column("error").null_count
            writer.write_table(table.cast(schema))
    shutil.rmtree(directory)
    return rows, errors


def _recorded(job: Job) -> dict[str, Any]:
    """The options of a job's answers, as every answer records them."""
    own = {} if job.precision is None else {"precision": job.precision}
    return {"top_k": job.top_k, "alternatives": 0, "maps": False, **own}


def answered(output: Path) -> dict[str, int] | None:
    """Count the answers of a scored file by level: `none`, `level_1`, …; None where its model promises no precision."""
    counts: Counter[int] = Counter()
    with output.open("rb") as stream:
        for batch in parquet.ParquetFile(stream).iter_batches(columns=["answer"]):
            counts.update(answer["level"] for answer in batch.column(0).to_pylist() if answer is not None)
    if not counts:
        return None
    return {"none" if level == 0 else f"level_{level}": counts[level] for level in sorted(counts)}


def _decoded(job: Job, index: int, classifier: Classifier) -> Iterator[list[tuple[str, FittedImage | InputError]]]:
    """Yield the part's pictures in batches; threads decode up to three batches ahead."""
    root = Path(job.root)

    def read(name: str) -> FittedImage | InputError:
        file = root / name
        if file.exists() and not file.is_file() and not file.is_dir():
            return InputError(f"{file} is a pipe, a socket or a device; give an image file")
        try:
            return classifier.fit(file)
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
        # A table can't hold a name that is not UTF-8.
        "image": visible(name),
        "model": prediction.model.version,
        "sha256": prediction.image.sha256,
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
        "answer": None if prediction.answer is None else prediction.answer.model_dump(),
    }
