"""The record in a run's `provenance.json`, which bundles repeat: what a model was made from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from protoserve.run.record import Record


class DataReference(Record):
    """The data set of a run: its folder's name, the fingerprint of its training pictures that are labelled down to a
    leaf, and that of those labelled only down to an `inner` node, None without any."""

    root: str
    fingerprint: str
    inner: str | None = None


class BackboneReference(Record):
    """The backbone of a run: its `name`, the `library` that it is from with its version, and the `tag` of the published
    weights that it started from, None for random ones, a file or another run. Pictures are normalised with `mean` and
    standard `deviation` (red, green, blue, in [0, 1]). `height`, `width` and `interpolation` are what the weights were
    tested with, None where that is not recorded; the run's own picture size is in its configuration."""

    name: str
    library: str
    tag: str | None = None
    mean: list[float]
    deviation: list[float]
    height: int | None = None
    width: int | None = None
    interpolation: str | None = None


class ImageNumbers(Record):
    """The numbers of images that a run was fitted and selected on; `inner` of those fitted on are labelled only down to
    an inner node."""

    fit: int
    selection: int
    inner: int = 0


class ClassChange(Record):
    """A change of the classes of a finished run. `node` is the class after an addition, a renaming or a merger, or the
    one removed; `of` are the classes that it was before. An added class came from the `folder` of that name with so
    many `pictures`, of which `held_out` select; `prototypes` were cut from the others. `by` is the user, `at` the time
    (ISO 8601, UTC), and `run` the name of the run that was changed."""

    action: Literal["add", "remove", "rename", "merge"]
    node: str
    of: list[str] = Field(default_factory=list)
    folder: str | None = None
    pictures: int | None = None
    held_out: int | None = None
    prototypes: int | None = None
    by: str
    at: str
    run: str


class ExportRecord(Record):
    """The export that wrote a bundle: package → version."""

    versions: dict[str, str] = Field(default_factory=dict)


class Provenance(Record):
    """`provenance.json`: configuration, data and versions of a run. `left_out` maps the leaves left out of training to
    their folders, and `broken` names the pictures left out because they can't be read; both are needed to read the
    run's data set. `passed_over` counts, by split and reason, the files that are not among the images; `copies` counts,
    by split, the pictures that are in train, too, and as `two_classes` those of train that are under two classes.
    `backbone` is None for an autoencoder and in records of earlier versions. A bundle's manifest adds `export`.
    `changes` are those of the classes after training, oldest first."""

    config: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    data: DataReference | None = None
    left_out: dict[str, str] = Field(default_factory=dict)
    broken: list[str] = Field(default_factory=list)
    passed_over: dict[str, dict[str, int]] = Field(default_factory=dict)
    copies: dict[str, int] = Field(default_factory=dict)
    images: ImageNumbers | None = None
    backbone: BackboneReference | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    python: str | None = None
    device: str | None = None
    export: ExportRecord | None = None
    changes: list[ClassChange] = Field(default_factory=list)
