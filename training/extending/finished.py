"""A finished run as it is read before its classes change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protoserve.errors import InputError
from protoserve.networks.model_file import NetworkDescription, PrototypeSource, load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import Run, open_run
from protoserve.run.provenance import Provenance
from protoserve.taxonomy import Taxonomy
from training.config import Config, parse_config


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with prototypes, as it is read before a change."""

    run: Run
    network: PrototypeNetwork
    description: NetworkDescription
    sources: list[PrototypeSource]
    config: Config
    provenance: Provenance

    @property
    def taxonomy(self) -> Taxonomy:
        """The class tree before the change."""
        return self.network.head.taxonomy


def read_finished(run: Path) -> FinishedRun:
    """Read a run to change; raises InputError for one that is not finished, or without projected prototypes of its own
    classes."""
    opened = open_run(run)
    network, description, sources = load_network(opened.model)
    if not isinstance(network, PrototypeNetwork):
        reason = (
            "its prototypes are codes of whole pictures, which a decoder has learned to draw"
            if description.kind == "autoencoder"
            else "a linear head has no prototypes to cut from pictures"
        )
        raise InputError(f"{run}: {reason}; train again with the classes that you need")
    if sources is None:
        raise InputError(f"{run}: its prototypes were never projected to pictures; train again")
    provenance = opened.provenance()
    return FinishedRun(
        opened, network, description, sources, parse_config(provenance.config, f"{run}/provenance.json"), provenance
    )
