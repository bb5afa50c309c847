"""Fill in a carried head: cut its new prototypes from pictures, and fit its last layers to similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from protoserve.data.dataset import Dataset
from protoserve.networks.head import PrototypeHead
from protoserve.networks.network import PrototypeNetwork
from protoserve.networks.refitting import refit_layer
from protoserve.run.similarities import KeptSimilarities
from protoserve.taxonomy import competing_groups
from training.config import Config
from training.data.pictures import MIRRORED, PLAIN
from training.extending.carrying import CarriedHead
from training.extending.changes import ChangedTree
from training.extending.cost import OldImages, largest_loss
from training.extending.cutting import cut
from training.extending.measuring import Stopwatch, chained, frozen_feed, similarities, without_own_source
from training.extending.pictures import remapped
from training.extending.refitting import RefitSetting, image_weights, refit_settings
from training.features.cache import FeatureCache
from training.features.shared_cache import SharedCache
from training.prototypes.projection import Projection
from training.stages.last_layers import from_mirrored

# Pictures of a class to cut prototypes from at most.
MOST_PICTURES = 512


@dataclass(frozen=True)
class Fitted:
    """What an extension measured. `fit` and `selection` are the images of old and new classes, with their features of
    plain pictures. `cells` are the sources of the new prototypes, in their order. `learned` float32 [fit images, P]
    are the similarities that last layers were fitted to, `plain` those of the plain pictures, and
    `selection_similarity` float32 [selection images, P]. `old_images` say what the change costs the old classes, and
    `setting` how the last layers were fitted; None if they were not."""

    fit: Dataset
    selection: Dataset
    fit_features: FeatureCache
    selection_features: FeatureCache
    cells: Projection
    learned: NDArray[np.float32]
    plain: NDArray[np.float32]
    selection_similarity: NDArray[np.float32]
    old_images: OldImages
    setting: RefitSetting | None
    mirrored: bool


def fitted_head(
    network: PrototypeNetwork,
    carried: CarriedHead,
    tree: ChangedTree,
    old: tuple[Dataset, Dataset],
    new: tuple[Dataset, Dataset],
    kept: KeptSimilarities | None,
    config: Config,
    groups: Sequence[int],
    tolerance: float,
    *,
    directory: Path,
    device: torch.device,
    console: Console,
    cache: SharedCache | None,
    watch: Stopwatch,
) -> Fitted:
    """Set the new prototypes of the carried head, and fit the last layers of these `groups` again.

    `old` and `new` are the (fit, selection) images of the old classes under the old tree, and of the new classes. The
    similarities of old images to old prototypes are those that the run has `kept`, if it has. Old classes should lose
    at most `tolerance` points of accuracy on the selection images, at every level (see `chosen_fit`).
    """
    network.to(device)
    head = carried.head.to(device)
    old_feed = frozen_feed(*old, network, config, directory / "old", device=device, console=console, cache=cache)
    new_feed = frozen_feed(*new, network, config, directory / "new", device=device, console=console)
    rows = [np.flatnonzero(tree.leaf_of[part.leaves] >= 0) for part in old]
    fit, selection = (remapped(before, tree).joined(added) for before, added in zip(old, new, strict=True))
    mirrored = from_mirrored(config)
    with watch.on_features():
        plain_old, selection_old = old_feed.cached("fit"), old_feed.cached("selection")
        plain_new = new_feed.cached("fit") if len(new[0]) else None
        selection_new = new_feed.cached("selection") if len(new[1]) else None
        learned_new = new_feed.cached("fit", MIRRORED) if mirrored and len(new[0]) else plain_new
        learned_old = old_feed.cached("fit", MIRRORED if mirrored else PLAIN) if kept is None else None
    fit_features, selection_features = (
        chained(plain_old, rows[0], plain_new),
        chained(selection_old, rows[1], selection_new),
    )
    cells = _cut_prototypes(network, carried, fit, fit_features, len(new[0]), config.seed, device)
    plain = similarities(network, head, fit_features, config.batch, device)
    learned = plain.copy()
    numbers = np.flatnonzero(carried.origin >= 0)
    if kept is not None:
        learned[: len(rows[0]), numbers] = kept.fit.similarity[rows[0]][:, carried.origin[numbers]]
        before = kept.selection.similarity
    else:
        assert learned_old is not None
        learned[: len(rows[0])] = similarities(network, head, learned_old, config.batch, device)[rows[0]]
        before = similarities(network, network.head, selection_old, config.batch, device)
    if learned_new is not None:
        learned[len(rows[0]) :] = similarities(network, head, learned_new, config.batch, device)
    source = np.full(len(carried.origin), -1)
    source[carried.new] = cells.image.numpy()
    learned = without_own_source(learned, fit.leaves, source, carried.new)
    of_selection = similarities(network, head, selection_features, config.batch, device)
    old_images = OldImages.of(network.head, tree, old[1].leaves, before, of_selection[: len(rows[1])])
    setting = chosen_fit(head, learned, fit, len(new[0]), groups, old_images, tolerance) if groups else None
    return Fitted(
        fit,
        selection,
        fit_features,
        selection_features,
        cells,
        learned,
        plain,
        of_selection,
        old_images,
        setting,
        mirrored,
    )


@torch.no_grad()
def _cut_prototypes(
    network: PrototypeNetwork,
    carried: CarriedHead,
    fit: Dataset,
    features: FeatureCache,
    new: int,
    seed: int,
    device: torch.device,
) -> Projection:
    """Set the new prototypes of the head to cells of their own class's pictures, and return these cells.

    Where a node has old prototypes, too, the new ones are cut from the last `new` images, those of new classes, and
    each of these classes gets as many.
    """
    head, taxonomy = carried.head, carried.head.taxonomy
    all_children = head.grouping.prototype_child.cpu().numpy()
    child, learned = all_children[carried.new], set(all_children[carried.origin >= 0].tolist())
    image, cell = np.zeros(len(child), dtype=np.int64), np.zeros(len(child), dtype=np.int64)
    distance, vector = np.zeros(len(child)), np.zeros((len(child), head.prototypes.shape[1]), dtype=np.float32)
    for node in np.unique(child).tolist():
        pictures = np.flatnonzero(taxonomy.leaves_below[node][fit.leaves])
        parts = [pictures]
        if node in learned:
            pictures = pictures[pictures >= len(fit) - new]
            parts = [pictures[fit.leaves[pictures] == leaf] for leaf in np.unique(fit.leaves[pictures])]
        places = np.array_split(np.flatnonzero(child == node), len(parts))
        for own, mine in zip(parts, places, strict=True):
            if len(own) > MOST_PICTURES:
                own = np.sort(np.random.default_rng((seed, 2)).choice(own, MOST_PICTURES, replace=False))
            latent = network.latent(features.batch(own).to(device)).flatten(2).float().cpu().numpy()
            found = cut(latent, len(mine), seed)
            image[mine], cell[mine], distance[mine], vector[mine] = own[found.image], *found[1:]
    head.prototypes[torch.from_numpy(carried.new)] = torch.from_numpy(vector).to(device)
    return Projection(*(torch.from_numpy(part) for part in (image, cell, distance, vector)))


@torch.no_grad()
def chosen_fit(
    head: PrototypeHead,
    learned: NDArray[np.float32],
    fit: Dataset,
    new: int,
    groups: Sequence[int],
    old_images: OldImages,
    tolerance: float,
) -> RefitSetting:
    """Fit the last layers of these groups by the setting that favours new classes most among those by which the old
    ones lose at most `tolerance` points at every level, and return it.

    Of the ridges at that balance, the one that costs the least; if every setting costs more than the tolerance, the one
    that costs the least of all. Of equal costs, the first.
    """
    start, best, least = head.weight.detach().clone(), RefitSetting(), np.inf
    kept = start
    for settings in refit_settings():
        for setting in settings:
            head.weight.copy_(start)
            fit_groups(head, learned, fit, new, groups, setting)
            if (loss := largest_loss(old_images.cost(head))) < least:
                best, least, kept = setting, loss, head.weight.detach().clone()
        if least <= tolerance + 1e-9:
            break
    head.weight.copy_(kept)
    return best


@torch.no_grad()
def fit_groups(
    head: PrototypeHead,
    learned: NDArray[np.float32],
    fit: Dataset,
    new: int,
    groups: Sequence[int],
    setting: RefitSetting,
) -> None:
    """Fit the last layers of these groups to the similarities `learned` [fit images, P]; the last `new` images are of
    new classes."""
    below = head.taxonomy.leaves_below.T[fit.leaves]  # [images, nodes]
    of_group = head.grouping.prototype_group.cpu().numpy()
    fresh = np.bincount(fit.leaves[len(fit) - new :], minlength=len(head.taxonomy.leaves)) > 0
    for number in groups:
        members = np.array(competing_groups(head.taxonomy, head.kind)[number].children)
        prototypes = np.flatnonzero(of_group == number)
        images = np.flatnonzero(below[:, members].any(axis=1))
        if not len(prototypes) or not len(images):
            continue
        similarity, target = learned[images][:, prototypes], below[images][:, members].argmax(axis=1)
        start = head.weight[number, : len(members), : len(prototypes)]
        weight = torch.from_numpy(image_weights(fit.leaves[images], fresh, setting.balance))
        head.weight[number, : len(members), : len(prototypes)] = refit_layer(
            start,
            torch.from_numpy(similarity),
            torch.from_numpy(target),
            setting.ridge,
            share=weight / weight.sum(),
        )
