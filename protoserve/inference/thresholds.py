"""The novelty thresholds of a bundle, with the tables that its scores need."""

from __future__ import annotations

from protoserve.bundle.folder import Bundle
from protoserve.errors import BundleError
from protoserve.inference.last_layers import read_last_layers
from protoserve.novelty import NoveltyTable, Thresholds


def read_thresholds(bundle: Bundle) -> Thresholds | None:
    """Read the novelty thresholds of a bundle; None where it has none.

    Raises BundleError if its prototypes or thresholds name nodes that its taxonomy does not have.
    """
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    if manifest.novelty is None:
        return None
    children = [taxonomy.index.get(record.child) for record in manifest.prototypes]
    if None in children or not set(manifest.novelty.thresholds) <= {"", *taxonomy.names}:
        raise BundleError(
            f"{bundle.directory}: its prototypes or novelty thresholds name nodes that its taxonomy does not have; "
            "export the bundle again"
        )
    numbers = [child for child in children if child is not None]
    # Only the energy sees what centring subtracts; the last layers of a large taxonomy are large.
    needs_layers = manifest.novelty.score == "energy"
    layers = read_last_layers(bundle, NoveltyTable.of(taxonomy, manifest.kind, numbers)) if needs_layers else None
    return Thresholds.of(
        taxonomy,
        manifest.kind,
        numbers,
        manifest.novelty.score,
        manifest.novelty.thresholds,
        None if layers is None else layers.common_weight,
    )
