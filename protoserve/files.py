"""Atomic writes of files and folders, hashes of files, and YAML without duplicate keys.

A write goes to a draft beside its target, which is then renamed. So no reader sees a partial file, and a failed write
leaves the old file unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protoserve.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from ruamel.yaml import YAML

DRAFT: Final = ".draft-"
FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What the place refuses; other errors of the operating system come from what is read or from a mistake of ours.
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG})
# Libraries in C++ report a full disk without its number. Then a disk with less space than this, in bytes, is full.
_LEFT_ON_A_FULL_DISK: Final = 100_000


@contextmanager
def new_file(file: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a draft with the suffix of `file`; on leaving without an error, the draft replaces `file`.

    Several processes may write the same file at the same time: each has its own draft, and the last one wins. With
    `durable`, the content is flushed to the disk before the draft is renamed, so that it survives a power failure.

    Raises InputError if the file can't be written, for example to a full disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with new_file(Path(folder, "sum.txt")) as draft:
    ...         written = draft.write_text("42")
    ...     Path(folder, "sum.txt").read_text()
    '42'
    """
    draft = _draft(file)
    try:
        with writing(file, draft):
            yield draft
            if durable:
                with draft.open("rb+") as stream:
                    os.fsync(stream.fileno())
            draft.replace(file)
    finally:
        # Where the draft could not be made, its removal fails for the same reason.
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    with new_file(file) as draft:
        draft.write_bytes(content)


@contextmanager
def new_folder(directory: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty draft folder to fill; on leaving without an error, it is renamed to `directory`.

    With `overwrite`, it replaces an existing folder if that folder contains the file `marker`, which identifies its
    kind. Raises InputError if anything else exists under that name, and if the folder can't be written.
    """
    if directory.exists() and not overwrite:
        raise InputError(f"{directory} exists; give another place or allow --overwrite")
    if directory.exists() and not (directory / marker).is_file():
        raise InputError(f"{directory} exists and holds no {marker}; it is not overwritten, so give another place")
    make_folder(directory.parent)
    draft = _draft(directory)
    try:
        with writing(directory, draft):
            draft.mkdir()
            yield draft
            if directory.exists():
                old = _draft(directory)
                directory.rename(old)
                draft.rename(directory)
                shutil.rmtree(old)
            else:
                draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def writing(target: Path, draft: Path | None = None) -> Iterator[None]:
    """Raise InputError where the disk is full, or where the block may not write to `target` or to its `draft`.

    Other errors pass. The block may write files below these paths.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _number(error)
        full = _full_disk(target)
        if number in FULL_DISK or (number is None and full is not None):
            # Temporary files may be removed by now.
            place = f"there or in {tempfile.gettempdir()}" if full is None else f"on the disk of {full}"
            reason = f"{os.strerror(number or errno.ENOSPC)}); free some space {place}"
        elif number in _REFUSED and isinstance(error, OSError) and _is_at(error, target, draft):
            reason = f"{os.strerror(number)}); give this user the right to it"
        else:
            raise
        raise InputError(f"{target}: can't write it ({reason}, or give another place") from error


def _number(error: OSError | RuntimeError) -> int | None:
    """Return the error's number, None if it has none."""
    if isinstance(error, shutil.Error):
        # `shutil.copytree` collects its errors as text.
        found = re.search(r"\[Errno (\d+)\]", str(error))
        return None if found is None else int(found.group(1))
    return error.errno if isinstance(error, OSError) else None


def _full_disk(target: Path) -> Path | None:
    """Return the folder whose disk is full: that of `target`, or the one for temporary files; None if neither is."""
    beside = next(folder for folder in (*target.parents, Path()) if folder.is_dir())
    folders = (beside, Path(tempfile.gettempdir()))
    return next((folder for folder in folders if shutil.disk_usage(folder).free < _LEFT_ON_A_FULL_DISK), None)


def _is_at(error: OSError, target: Path, draft: Path | None) -> bool:
    """Return whether an error came from `target`, its folder or its draft; those of calls on an open file have no
    name."""
    places = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
    roots = [root for root in (target, draft) if root is not None]
    return not places or any(place == target.parent or place.is_relative_to(root) for place in places for root in roots)


def make_folder(directory: Path) -> None:
    """Make a folder and its missing parents.

    Raises InputError if a file has that name or the folder is not writable.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: can't make this folder ({error.strerror}); give another place") from error
    if not os.access(directory, os.W_OK):
        raise InputError(f"{directory}: this folder is not writable; give another place")


def remove_drafts(directory: Path) -> None:
    """Remove the drafts of files that a killed process left in a folder and below it.

    Call it only if no other process writes there.
    """
    for file in directory.rglob(f"{DRAFT}*"):
        if file.is_file():
            file.unlink()


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_yaml(file: Path) -> Any:
    """Read a YAML 1.2 file; an empty file gives None.

    Raises InputError for a file that can't be read, for invalid YAML, and for a duplicate key in a mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't read it ({error}); give a YAML file in UTF-8") from error
    return parse_yaml(text, str(file))


def parse_yaml(text: str, origin: str) -> Any:
    """Parse a YAML 1.2 text; `origin` names it in errors. Raises InputError as `read_yaml` does."""
    reader = _yaml(f"reading {origin}")
    # ruamel.yaml is installed, because `_yaml` has imported it.
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        return reader.load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        # The error has the key's position in the text, but the key itself only inside a longer message.
        key = text.splitlines()[line - 1][error.problem_mark.column :].partition(":")[0].strip(" '\"")
        raise InputError(f"{origin}, line {line}: the key {key!r} is given twice; keep one") from error
    except (YAMLError, ValueError) as error:
        raise InputError(f"{origin}: not valid YAML: {error}") from error


def plain_scalars(file: Path) -> list[tuple[str, int]]:
    """Return the scalars of a YAML file that are written without quotes and not read as text, each with its line."""
    composed = _yaml(f"reading {file}").compose(file.read_text(encoding="utf-8"))
    found: list[tuple[str, int]] = []
    waiting, seen = [composed], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node.value, str):
            if node.value and node.style is None and node.tag != "tag:yaml.org,2002:str":
                found.append((node.value, node.start_mark.line + 1))
        else:
            waiting += [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    return sorted(found, key=lambda scalar: scalar[1])


def yaml_text(content: Any) -> str:
    """Format plain data as YAML, one key per line, in the given order."""
    buffer = StringIO()
    writer = _yaml("writing YAML")
    writer.default_flow_style = False
    # ruamel.yaml annotates this attribute as None.
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(content, buffer)
    return buffer.getvalue()


def _draft(target: Path) -> Path:
    return target.with_name(f"{DRAFT}{secrets.token_hex(4)}.{target.name}")


def _yaml(purpose: str) -> YAML:
    try:
        from ruamel.yaml import YAML
    except ModuleNotFoundError as error:
        raise MissingExtraError(purpose, "train") from error
    return YAML(typ="safe", pure=True)
