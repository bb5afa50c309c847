"""Pruning by the published rule, and the smaller head that remains.

Chen et al. 2019, supplement, section 3: a prototype whose nearest training patches are mostly of other classes stands
for something that its class shares with others, such as background, and is removed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.networks.head import PrototypeHead
from training.loop.trainer import Trainer
from training.prototypes.projection import Projection
from training.stages.analysis import fit_patches, own_patches


def prune(trainer: Trainer) -> dict[str, float]:
    """Remove the impure prototypes; the steps after this one fit the last layers again, from the weights they have."""
    setting = trainer.config.prune
    head, fit = trainer.prototype_network.head, trainer.splits.fit
    before = trainer.select_prototypes()
    own = own_patches(head, fit_patches(trainer, setting.nearest), fit.leaves)
    kept = pure_prototypes(
        own.sum(axis=1), head.prototype_child.cpu().numpy(), class_sizes(head, fit.leaves), setting.at_least
    )
    take_head(trainer, smaller_head(head, kept), kept)
    after = trainer.select_prototypes()
    trainer.state.facts["prune"] = {
        "prototypes": {"before": len(own), "after": len(kept)},
        "before": before,
        "after": after,
    }
    return {"prototypes": len(kept), "removed": len(own) - len(kept), "before": before["selection_leaf"], **after}


def pure_prototypes(
    own: NDArray[np.int64], child: NDArray[np.int64], class_size: NDArray[np.int64], at_least: int
) -> NDArray[np.int64]:
    """The prototypes to keep, ascending: those with `at_least` nearest patches of their own class.

    `own` int [P] counts each prototype's nearest patches that are of its class, `child` [P] is the node it belongs to,
    `class_size` [P] the number of training images of its class; a class of fewer images than `at_least` need not
    have more patches than images. The purest prototype of every child stays, the first of equals, whatever its purity:
    a child without prototypes could only ever be predicted for want of evidence for its siblings, and there would
    be nothing to show for it.
    """
    keep = own >= np.minimum(at_least, class_size)
    for node in np.unique(child):
        places = np.flatnonzero(child == node)
        if not keep[places].any():
            keep[places[own[places].argmax()]] = True
    return np.flatnonzero(keep)


def class_sizes(head: PrototypeHead, leaves: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [P] the number of images below each prototype's child."""
    images = np.bincount(leaves, minlength=len(head.taxonomy.leaves))
    return np.asarray((head.taxonomy.leaves_below @ images)[head.prototype_child.cpu().numpy()], dtype=np.int64)


def take_head(trainer: Trainer, head: PrototypeHead, kept: NDArray[np.int64]) -> None:
    """Go on with `head`, which holds the prototypes `kept` of the present one, in the network, its description and the
    record of the projection."""
    network, projection = trainer.prototype_network, trainer.state.projection
    network.head = head
    description = trainer.description.model_copy(update={"prototype_child": head.prototype_child.tolist()})
    trainer.take_network(description, network)
    if projection is not None:
        chosen = torch.from_numpy(kept)
        trainer.state.projection = Projection(*(part[chosen] for part in projection))


@torch.no_grad()
def smaller_head(head: PrototypeHead, kept: NDArray[np.int64]) -> PrototypeHead:
    """A head with the `kept` prototypes (ascending int64 numbers) and the weights they have, in evaluation mode.

    Its logits are those of `head` with the weights of all other prototypes set to zero. Raises ValueError when a child
    would lose its last prototype.
    """
    chosen = torch.from_numpy(kept).to(head.prototypes.device)
    children = head.prototype_child[chosen].tolist()
    if lost := set(head.prototype_child.tolist()) - set(children):
        raise ValueError(f"no prototype of {head.taxonomy.names[min(lost)]!r} is kept; keep one of each child")
    smaller = PrototypeHead(
        head.taxonomy,
        children,
        head.prototypes.shape[1],
        kind=head.kind,
        similarity=head.similarity,
        unit_length=head.unit_length,
    ).to(head.prototypes.device)
    smaller.prototypes.copy_(head.prototypes[chosen])
    smaller.centre.copy_(head.centre)
    smaller.temperature.copy_(head.temperature)
    weight = head.effective_weight()[head.prototype_group[chosen], :, head.prototype_slot[chosen]]
    smaller.weight.zero_()
    smaller.weight[smaller.prototype_group, :, smaller.prototype_slot] = weight
    return smaller.eval()
