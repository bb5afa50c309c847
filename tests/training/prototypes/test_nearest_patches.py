"""Nearest training patches against an exhaustive search: any order, batches and blocks; ties and the sphere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.taxonomy import Kind, Taxonomy
from training.prototypes import nearest_patches as nearest_patches_module
from training.prototypes.nearest_patches import nearest_patches, own_patches, own_weights

TAXONOMY = Taxonomy.from_paths(["A/B/x", "A/B/y", "A/z", "Q"])


def make_problem(kind: Kind = "hierarchical", form: SimilarityForm = "log1p") -> tuple[PrototypeHead, Tensor]:
    torch.manual_seed(0)
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, kind, 2, 2), 5, kind=kind, similarity=Similarity(form))
    latent = torch.rand(17, 5, 3, 4)
    if form == "cosine":
        latent = torch.nn.functional.normalize(latent - 0.5, dim=1)
        with torch.no_grad():
            head.prototypes.sub_(0.5)
    else:
        # A whole image twice, the same cell twice in one image, and a prototype cut from that cell.
        latent[9] = latent[2]
        latent[5, :, 2, 1] = latent[5, :, 0, 3]
        with torch.no_grad():
            head.prototypes[1] = latent[5, :, 0, 3]
    return head, latent


def exhaustive(head: PrototypeHead, latent: Tensor, nearest: int) -> list[list[tuple[float, int, int]]]:
    """(distance, image, cell) of the nearest images of each prototype, by trying every cell of every image."""
    vectors = head.prototypes.detach().double()
    if head.similarity.form == "cosine":
        vectors = vectors / vectors.square().sum(1, keepdim=True).sqrt()
    found = []
    for vector in vectors:
        best = []
        for image, cells in enumerate(latent.double().flatten(2)):
            distances = [float((cell - vector).square().sum()) for cell in cells.T]
            best.append((min(distances), image, int(np.argmin(distances))))
        found.append(sorted(best)[:nearest])
    return found


def stream(latent: Tensor, order: NDArray[np.int64], size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield part, latent[part]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("form", ["log1p", "cosine"])
@pytest.mark.parametrize(("size", "seed", "block"), [(1, None, 1), (4, 0, 10**6), (17, 1, 400), (17, None, 10**6)])
def test_the_nearest_patches_are_those_of_an_exhaustive_search(
    kind: Kind, form: SimilarityForm, size: int, seed: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_patches_module, "BLOCK", block)
    head, latent = make_problem(kind, form)
    order = np.arange(17) if seed is None else np.random.default_rng(seed).permutation(17)
    found = nearest_patches(head, stream(latent, order, size), 6)
    expected = exhaustive(head, latent, 6)
    assert found.image.tolist() == [[image for _, image, _ in row] for row in expected]
    assert found.cell.tolist() == [[cell for _, _, cell in row] for row in expected]
    distances = [[distance for distance, _, _ in row] for row in expected]
    # The head brings its prototypes to unit length in single precision.
    np.testing.assert_allclose(found.distance, distances, atol=1e-6 if form == "cosine" else 1e-12)


def test_a_data_set_of_fewer_images_gives_all_of_them() -> None:
    head, latent = make_problem()
    found = nearest_patches(head, stream(latent[:4], np.arange(4), 3), 6)
    assert found.image.shape == found.cell.shape == found.distance.shape == (len(head.prototypes), 4)
    assert (np.sort(found.image, axis=1) == np.arange(4)).all()
    assert (np.diff(found.distance, axis=1) >= 0).all()


def test_a_patch_is_own_when_its_image_lies_below_the_prototypes_child() -> None:
    head, latent = make_problem()
    leaves = np.arange(17) % len(TAXONOMY.leaves)
    found = nearest_patches(head, stream(latent, np.arange(17), 5), 6)
    own = own_patches(head, found, leaves)
    for number, child in enumerate(head.grouping.prototype_child.tolist()):
        name = TAXONOMY.names[child]
        for rank, image in enumerate(found.image[number]):
            leaf = TAXONOMY.names[TAXONOMY.leaves[leaves[image]]]
            assert own[number, rank] == (leaf == name or leaf.startswith(f"{name}/"))


def test_own_weights_are_those_to_the_prototypes_own_child() -> None:
    head, _ = make_problem()
    with torch.no_grad():
        head.weight.copy_(torch.arange(head.weight.numel()).reshape(head.weight.shape))
    found = own_weights(head)
    weight = torch.where(head.own_mask, head.weight, 0.0)
    for number, (group, slot) in enumerate(
        zip(head.grouping.prototype_group, head.grouping.prototype_slot, strict=True)
    ):
        assert found[number] == weight[group, :, slot].sum()
