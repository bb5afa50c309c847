"""Checks of a data set before anything long starts: every picture's header, and pictures that are in it twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from protoserve.cores import usable_cores
from protoserve.data.dataset import Dataset
from protoserve.errors import ImageError, InputError
from protoserve.images.decoding import decoding_cost

# How many broken pictures an error lists.
_LISTED: Final = 20


def broken_pictures(dataset: Dataset, advance: Callable[[int], None] = lambda images: None) -> dict[str, str]:
    """Read every picture's header; return those that can't be read, image → reason.

    Calls `advance(1)` after each. Pixels are not decoded, so damage behind the header stays unnoticed.
    """
    if dataset.pixels is not None:
        return {}
    found: dict[str, str] = {}
    with ThreadPoolExecutor(usable_cores()) as threads:
        problems = threads.map(_problem, (dataset.file(index) for index in range(len(dataset))))
        for image, problem in zip(dataset.images, problems, strict=True):
            if problem is not None:
                found[image] = problem
            advance(1)
    return found


def refuse_broken(broken: dict[str, str]) -> None:
    """Raise InputError that lists all pictures that can't be read, if there are any."""
    if not broken:
        return
    listed = ", ".join(f"{image} ({problem})" for image, problem in list(broken.items())[:_LISTED])
    more = f" and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
    count = "1 picture" if len(broken) == 1 else f"{len(broken)} pictures"
    raise InputError(
        f"{count} can't be read: {listed}{more}; mend or remove them, or leave them out with --skip-broken"
    )


def without_broken(
    dataset: Dataset, *, skip: bool, advance: Callable[[int], None] = lambda images: None
) -> tuple[Dataset, tuple[str, ...]]:
    """Read every header; return the data set without pictures that can't be read, and their names.

    Raises InputError for the first 20 of them unless `skip`, and if no picture is left.
    """
    broken = broken_pictures(dataset, advance)
    if not skip:
        refuse_broken(broken)
    if len(broken) == len(dataset):
        raise InputError(f"{dataset.root}: none of the {len(dataset)} pictures of {dataset.split!r} can be read")
    return (dataset.without(broken) if broken else dataset), tuple(broken)


def copies(first: Dataset, second: Dataset) -> list[tuple[str, str]]:
    """Return the images of `second` whose content an image of `first` has, each with that image."""
    known = {content: image for _, image, content in _contents(first, _sizes(second))}
    found = ((image, known.get(content)) for _, image, content in _contents(second, _sizes(first)))
    return [(image, twin) for image, twin in found if twin is not None]


def under_two_leaves(dataset: Dataset) -> list[tuple[str, str]]:
    """Return the images whose content an earlier image of another leaf has, each with that image."""
    sizes = _sizes(dataset)
    repeated = {size: count for size, count in sizes.items() if count > 1}
    seen: dict[bytes, int] = {}
    pairs = []
    for index, image, content in _contents(dataset, repeated):
        earlier = seen.setdefault(content, index)
        if dataset.leaves[earlier] != dataset.leaves[index]:
            pairs.append((image, dataset.images[earlier]))
    return pairs


def copies_note(pairs: Sequence[tuple[str, str]], what: str) -> str:
    """Say how many images are copies, with the first as an example."""
    image, twin = pairs[0]
    count = "1 picture" if len(pairs) == 1 else f"{len(pairs)} pictures"
    return f"warning: {count} of {what}, for example {image} = {twin}"


def _problem(file: Path) -> str | None:
    """Return what is wrong with a picture's header, in the words of `decode`, or None."""
    try:
        if not file.is_file():
            return "is a pipe, a socket or a device" if file.exists() else "no such file"
        decoding_cost(file.read_bytes())
    except ImageError as error:
        # The rest names all formats and says what to do.
        return str(error).removeprefix("the image ").partition(";")[0].partition(" as ")[0]
    except OSError as error:
        return error.strerror or "can't be read"
    return None


def _size(dataset: Dataset, index: int) -> int:
    return dataset.file(index).stat().st_size if dataset.pixels is None else dataset.pixels[index].nbytes


def _sizes(dataset: Dataset) -> dict[int, int]:
    """Count the images by size in bytes."""
    sizes: defaultdict[int, int] = defaultdict(int)
    for index in range(len(dataset)):
        sizes[_size(dataset, index)] += 1
    return sizes


def _contents(dataset: Dataset, sizes: dict[int, int]) -> Iterator[tuple[int, str, bytes]]:
    """Yield (index, image, hash of its content) of the images with one of these sizes; others can have no copy."""
    chosen = [index for index in range(len(dataset)) if _size(dataset, index) in sizes]
    with ThreadPoolExecutor(usable_cores()) as threads:
        for index, content in zip(chosen, threads.map(dataset.content_hash, chosen), strict=True):
            yield index, dataset.images[index], content
