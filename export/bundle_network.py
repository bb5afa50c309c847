"""The network of a bundle: that of the run that it was exported from, with the bundle's own last layers.

A bundle that was refitted has other last layers than its run, so only those of the bundle count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundling import resized
from export.network_answers import NetworkAnswers
from export.parity import check
from export.targets.onnx_files import run_onnx
from protoserve.bundle.folder import Bundle
from protoserve.errors import InputError, ParityError
from protoserve.inference.last_layers import read_weights
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import ExplainedNetwork, load_network
from protoserve.networks.network import LinearNetwork
from protoserve.novelty import parent_names
from protoserve.run.folder import Run
from protoserve.taxonomy import competing_groups


@dataclass(frozen=True)
class BundleNetwork:
    """A bundle's `network`, the last layers [G, M, Q] that its run ended with, and the run's `samples` uint8 [pictures,
    H, W, 3] at the bundle's size."""

    network: ExplainedNetwork
    run_weight: torch.Tensor
    samples: NDArray[np.uint8]


def network_of_bundle(bundle: Bundle, run: Run) -> BundleNetwork:
    """Load the network of `run` and give it the last layers, temperatures and switches of `bundle`.

    Raises InputError if the bundle was not exported from this run: if it has other prototypes, or if its graph answers
    the run's sample pictures otherwise than this network.
    """
    wrong = f"{run.directory}: {bundle.directory} was not exported from this run"
    network, _, sources = load_network(run.model)
    if isinstance(network, LinearNetwork) or sources is None:
        raise InputError(f"{wrong}, which has no prototypes; give the bundle's own run")
    records, rule = bundle.prototypes, bundle.input
    if [source.image for source in sources] != [record.source_image for record in records]:
        raise InputError(f"{wrong}: their prototypes are cut from other pictures; give the bundle's own run")
    head, taxonomy = network.head, network.head.taxonomy
    if taxonomy.names != bundle.taxonomy.names:
        raise InputError(f"{wrong}: their classes differ; give the bundle's own run")
    weights = read_weights(bundle)
    if weights is None:
        raise InputError(f"{bundle.directory}: was exported without its last-layer weights; export its run again")
    run_weight = head.weight.detach().clone()
    with torch.no_grad():
        set_weights(head, weights)
        head.usual.copy_(torch.tensor([record.usual or 0.0 for record in records]))
        parents = parent_names(competing_groups(taxonomy, head.kind), taxonomy)
        head.temperature.copy_(torch.tensor([bundle.manifest.temperature.get(parent, 1.0) for parent in parents]))
    head.switch_off(bundle.curation.off)
    samples = run.samples()
    if samples.shape[1:3] != (rule.height, rule.width):
        samples = resized(samples, (rule.height, rule.width))
    try:
        check(
            NetworkAnswers(network, bundle.top_k),
            run_onnx(bundle.file("onnx")),
            samples,
            batches=(min(8, len(samples)),),
        )
    except ParityError as error:
        raise InputError(f"{wrong}: their answers differ ({error}); give the bundle's own run") from error
    return BundleNetwork(network, run_weight, samples)


def set_weights(head: PrototypeHead, weights: NDArray[np.float32]) -> None:
    """Set the last layers from the weights of a bundle, as `export.bundling.head_weights` writes them."""
    grouping = head.grouping
    present = grouping.member_node < len(head.taxonomy.nodes)  # [G, M]
    rows = torch.zeros(len(head.prototypes), present.shape[1])
    rows[present[grouping.prototype_group]] = torch.from_numpy(weights)
    head.weight.zero_()
    head.weight[grouping.prototype_group, :, grouping.prototype_slot] = rows
