"""Every error that a user can meet. Each message names the value and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ProtoServeError(Exception):
    """Base of all errors that ProtoServe raises on purpose; the commands print it and exit with 2."""


class InputError(ProtoServeError):
    """A path, option, configuration or data set that can't be used as given."""


class TaxonomyError(InputError):
    """A class tree that is empty, cyclic, ambiguous or at odds with its images."""


class ImageError(InputError):
    """Bytes that are not a picture this model may read.

    `code` is stable and short; the HTTP service puts it into its problem documents:
    `unsupported_image`, `broken_image`, `image_too_large`.
    """

    def __init__(self, message: str, code: str = "broken_image") -> None:
        super().__init__(message)
        self.code = code


class BundleError(ProtoServeError):
    """A bundle that is torn, altered, unsafe or newer than this version knows."""


class DeviceError(ProtoServeError):
    """The device asked for is not the device in use."""


class ParityError(ProtoServeError):
    """An exported graph does not give the same answers as the network it came from."""


class ServiceError(ProtoServeError):
    """A service that refused a request, or gave no answer.

    `code` is the problem document's, `unreachable` without an answer, `unknown` for one that is no problem document;
    `status` is the HTTP status, 0 without an answer.
    """

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class MissingExtraError(ProtoServeError):
    """A command needs an optional dependency that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'protoserve[{extra}]'")
        self.extra = extra


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint for a name that does not exist.

    >>> nearest("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    >>> nearest("zzz", ["epochs", "seed"])
    ''
    """
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
