"""The errors that users can see. Each message names the faulty value and how to correct it."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable
from itertools import islice
from typing import Final

# What `nearest` reads and compares at most, so that a hint costs little however many names there are.
_READ: Final = 100_000
_COMPARED: Final = 64
_LETTERS: Final = 80


class ProtoServeError(Exception):
    """Base of all errors that ProtoServe raises on purpose; the commands print it and exit with 2."""


class InputError(ProtoServeError):
    """A path, option, configuration or data set that can't be used as given."""


class TaxonomyError(InputError):
    """A class tree that is empty, cyclic, ambiguous or at odds with its images."""


class ImageError(InputError):
    """Bytes that are not a picture, or a picture that is not allowed.

    `code` is one of `unsupported_image`, `broken_image` and `image_too_large`. It is stable; the HTTP service returns
    it in its problem documents.
    """

    def __init__(self, message: str, code: str = "broken_image") -> None:
        super().__init__(message)
        self.code = code


class BundleError(ProtoServeError):
    """A bundle that is incomplete, altered, unsafe or newer than this version."""


class DeviceError(ProtoServeError):
    """The requested device can't be used, or it failed."""


class OutOfMemoryError(ProtoServeError):
    """This machine has too little free memory for a piece of work that is otherwise allowed."""


class ParityError(ProtoServeError):
    """An exported graph whose outputs differ from those of its network."""


class ServiceError(ProtoServeError):
    """A service that refused a request or did not respond.

    `code` is that of the problem document, `unknown` for a response without one, and `unreachable` without a response.
    `status` is the HTTP status, 0 without a response.
    """

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class MissingExtraError(ProtoServeError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra {extra!r}: pip install 'protoserve[{extra}]'")
        self.extra = extra


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is most similar to an unknown one; empty if none is similar.

    >>> nearest("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    >>> nearest("zzz", ["epochs", "seed"])
    ''
    """
    wanted = name[:_LETTERS]
    backwards, letters = wanted[::-1], frozenset(wanted)

    def rough(candidate: str) -> float:
        ends = _shared_start(wanted, candidate) + _shared_start(backwards, candidate[::-1])
        return ends + len(letters.intersection(candidate[:_LETTERS])) - abs(len(candidate) - len(name)) / 4

    # Comparing is slow: choose what to compare by ends, letters and length.
    compared = heapq.nlargest(_COMPARED, islice(known, _READ), key=rough)
    shortened = {candidate[:_LETTERS]: candidate for candidate in reversed(compared)}
    close = difflib.get_close_matches(wanted, shortened, n=1, cutoff=0.5)
    return f"; did you mean {shortened[close[0]][: 4 * _LETTERS]!r}?" if close else ""


def _shared_start(first: str, second: str) -> int:
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
