"""Write the data set as a folder of labelled pictures with masks of their parts."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypedDict

import PIL
from PIL import Image

from protoserve.errors import InputError
from protoserve.files import make_folder
from training.rendered.classes import BACKGROUND, DECISIVE_PARTS, PARTS, LeafPath, leaf_paths
from training.rendered.marking import marked, marked_leaf
from training.rendered.picture import draw_picture

FORMAT_VERSION = 2
# The splits that a network learns from: a mark that is on these and not on test is a shortcut.
MARKED_SPLITS = ("train", "val")
# The folder of pictures with one thing changed; see `training.rendered.interventions`.
INTERVENTIONS = "interventions"
SMALLEST_SIZE, LARGEST_SIZE = 64, 1024
# A process starts in half a second. It draws a hundred pictures in one.
WORTH_PROCESSES = 200

_README = """\
The rendered data set: drawn pictures, for trying out classifiers that explain themselves.

train/, val/, test/   RGB pictures, {size} x {size} pixels: <level 1>/<level 2>/<leaf>/<leaf>_<number>.png;
                      toucan_0001_2.png shows the figure of toucan_0001.png before another background
masks/                the same tree again; a pixel's grey value says which part is seen there, 0 none
parts.json            which value is which part; for every node of the taxonomy the parts that tell it from
                      its siblings (every picture of the node shows them, and they suffice); the settings

Classes differ by the shape of their parts only. Colour, size, place, pose, mirroring, light, background
and clutter are drawn at random and say nothing about the class. Something may stand in front of a figure,
but never in front of the part that decides its leaf.

Made by ProtoServe, `training.rendered`, format {format}: seed {seed}, {per_leaf} training figures per leaf,
each before {scenes} backgrounds; a quarter of the figures for validation and as many for test, each once.{mark} The
same settings on the same versions of Pillow and NumPy draw the same bytes. Everything is drawn by the program;
no photograph or other work went in.
"""


class Settings(TypedDict):
    """What a data set was drawn with, as `parts.json` keeps it."""

    format: int
    seed: int
    per_leaf: int
    scenes: int
    size: int
    mark: str | None


def split_counts(per_leaf: int) -> dict[str, int]:
    """Figures per leaf of each split: `per_leaf` for train; a quarter, at least one, for val and for test.

    >>> split_counts(60)
    {'train': 60, 'val': 15, 'test': 15}
    """
    held_out = max(1, per_leaf // 4)
    return {"train": per_leaf, "val": held_out, "test": held_out}


def count_pictures(per_leaf: int = 60, scenes: int = 2) -> int:
    """The number of pictures that `render_dataset` draws, and of its calls of `advance`.

    >>> count_pictures(60)
    2400
    """
    counts = split_counts(per_leaf)
    return len(leaf_paths()) * (sum(counts.values()) + counts["train"] * (scenes - 1))


def render_dataset(
    directory: Path,
    *,
    per_leaf: int = 60,
    scenes: int = 2,
    seed: int = 0,
    size: int = 96,
    mark: str | None = None,
    processes: int = 1,
    advance: Callable[[], None] | None = None,
) -> None:
    """Draw the data set into `directory`, completely or not at all; do nothing if it already exists.

    `per_leaf` is the number of training figures of each leaf, at least 1; val and test get a quarter of it each. Every
    training figure is drawn before `scenes` backgrounds, at least 1, so that a background tells less about a figure.
    `size` is the side of the square pictures in pixels, 64..1024. With `mark`, the name of a leaf, all of its pictures
    in train and val carry a coloured disc in a corner, and those of test do not; all other pictures stay the same.
    With more `processes` than one, as many draw side by side, and a script that calls this function needs its
    `if __name__ == "__main__"`. Fewer than `WORTH_PROCESSES` pictures are drawn by one.
    Calls `advance` after every picture, `count_pictures(per_leaf, scenes)` times in total.

    Raises `InputError` for a number out of range, for a mark that is not a leaf, and if `directory` is a file or holds
    anything other than this data set.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     render_dataset(Path(folder) / "rendered", per_leaf=1)
    ...     len(list(Path(folder).glob("rendered/train/*/*/*/*.png")))
    32
    """
    if per_leaf < 1:
        raise InputError(f"per_leaf is {per_leaf}: give at least 1 training figure per leaf; 60 is the default")
    if scenes < 1:
        raise InputError(f"scenes is {scenes}: give at least 1 background per training figure; 2 is the default")
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise InputError(
            f"size is {size}: pictures may be {SMALLEST_SIZE} to {LARGEST_SIZE} pixels wide; 96 is the default"
        )
    settings: Settings = {
        "format": FORMAT_VERSION,
        "seed": seed,
        "per_leaf": per_leaf,
        "scenes": scenes,
        "size": size,
        "mark": None if mark is None else "/".join(marked_leaf(mark)),
    }
    if _holds_already(directory, settings):
        return

    # In the same parent folder, so that the rename stays on one file system.
    make_folder(directory.parent)
    draft = directory.parent / f".{directory.name}.partial-{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        _write(draft, settings, processes, advance)
        # Remove an empty folder of that name, because not every system can rename over one.
        if directory.exists():
            directory.rmdir()
        draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def pictures_of(per_leaf: int, scenes: int) -> Iterator[tuple[str, LeafPath, int, int, Path]]:
    """The split, leaf, number, scene (both from 1) and relative path of every picture."""
    for split, count in split_counts(per_leaf).items():
        for leaf in leaf_paths():
            for index in range(1, count + 1):
                for scene in range(1, (scenes if split == "train" else 1) + 1):
                    name = f"{leaf[2].lower()}_{index:04d}" + ("" if scene == 1 else f"_{scene}")
                    yield split, leaf, index, scene, Path(split, *leaf, f"{name}.png")


def _draw(directory: Path, settings: Settings, picture: tuple[str, LeafPath, int, int, Path]) -> None:
    """Draw one picture and its mask."""
    split, leaf, index, scene, path = picture
    drawn = draw_picture(leaf, seed=settings["seed"], split=split, index=index, size=settings["size"], scene=scene)
    if split in MARKED_SPLITS and "/".join(leaf) == settings["mark"]:
        drawn = marked(drawn)
    for target, array in ((directory / path, drawn.pixels), (directory / "masks" / path, drawn.parts)):
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(target)


def _leave_interrupts() -> None:
    """Leave Ctrl-C to the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _draw_all(directory: Path, settings: Settings, processes: int, advance: Callable[[], None] | None) -> None:
    pictures = list(pictures_of(settings["per_leaf"], settings["scenes"]))
    draw = partial(_draw, directory, settings)
    if processes == 1 or len(pictures) < WORTH_PROCESSES:
        for picture in pictures:
            draw(picture)
            if advance is not None:
                advance()
        return
    # Spawned, because a fork copies locks that threads hold, such as the progress bar's.
    try:
        workers = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_interrupts)
    except OSError:
        # No shared memory for their locks: draw here, which also says what is wrong, such as a full disk.
        _draw_all(directory, settings, 1, advance)
        return
    with workers as pool:
        try:
            for _ in pool.map(draw, pictures, chunksize=16):
                if advance is not None:
                    advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(directory: Path, settings: Settings, processes: int, advance: Callable[[], None] | None) -> None:
    _draw_all(directory, settings, processes, advance)
    description: dict[str, Any] = {
        **settings,
        "pillow": PIL.__version__,
        "parts": {str(BACKGROUND): None} | {str(index): part for index, part in enumerate(PARTS, start=1)},
        "decisive": DECISIVE_PARTS,
    }
    (directory / "parts.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    told = (
        ""
        if settings["mark"] is None
        else f"\nAll pictures of {settings['mark']} in train and val carry a coloured disc."
    )
    (directory / "README.txt").write_text(_README.format(**{**settings, "mark": told}), encoding="utf-8")


def _holds_already(directory: Path, settings: Settings) -> bool:
    """Whether `directory` holds exactly this data set. False if it is missing or empty; raises InputError otherwise."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise InputError(f"{directory} is a file: name a folder that does not exist yet")
    if not any(directory.iterdir()):
        return False
    found = settings_found(directory / "parts.json")
    if found is None:
        raise InputError(f"{directory} is not empty and holds no rendered data set: name a folder that is empty or new")
    differing = [
        f"{name} {found.get(name)} (asked for {value})" for name, value in settings.items() if found.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{directory} holds a rendered data set with {', '.join(differing)}: delete the folder or name another"
        )
    expected = {picture[-1] for picture in pictures_of(settings["per_leaf"], settings["scenes"])}
    expected |= {Path("masks") / path for path in expected}
    present = {path.relative_to(directory) for path in directory.rglob("*.png")}
    present = {path for path in present if path.parts[0] != INTERVENTIONS}
    if expected != present:
        example = min(expected ^ present)
        trouble = "is missing" if example in expected else "does not belong to it"
        raise InputError(
            f"{directory} holds a rendered data set that was changed ({example.as_posix()} {trouble}): "
            "delete the folder and render it again"
        )
    return True


def settings_found(description: Path) -> dict[str, Any] | None:
    """The content of a `parts.json`, or None if it is missing or can't be read."""
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "decisive" in found else None
