"""Projection against an exhaustive search: any order, batches, blocks, parts; ties, near-ties and the sphere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.taxonomy import Kind, Taxonomy
from training.prototypes import projection
from training.prototypes.projection import NO_IMAGE, Projection, complete, merge, own_prototypes, search

# A head, latent maps [images, D, rows, columns] and the images' leaves [images].
Problem = tuple[PrototypeHead, Tensor, Tensor]
LEAVES = ("A/x", "A/y", "B/u", "B/v", "Q")
# Leaves at depths 1 to 4, so that leaves have different numbers of prototypes.
UNEVEN = ("A/B/C/x", "A/B/C/y", "A/B/z", "A/w", "Q", "R/S/only", "R/T/u", "R/T/v")


def make_problem(
    leaves: tuple[str, ...] = LEAVES,
    kind: Kind = "hierarchical",
    form: SimilarityForm = "log1p",
    images: int = 23,
    seed: int = 0,
) -> Problem:
    taxonomy = Taxonomy.from_paths(leaves)
    torch.manual_seed(seed)
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, kind, 3, 2), 5, kind=kind, similarity=Similarity(form))
    latent = torch.rand(images, 5, 3, 4)
    if form == "cosine":
        latent = torch.nn.functional.normalize(latent - 0.5, dim=1)
        with torch.no_grad():
            head.prototypes.sub_(0.5)
    return head, latent, torch.arange(images) % len(leaves)


@pytest.fixture
def problem() -> Problem:
    head, latent, leaves = make_problem()
    # Equal cells in several images of one class: the first image and the first cell must win whatever the order.
    latent[7] = latent[2]
    latent[12, :, 1, 1] = latent[12, :, 0, 2]
    return head, latent, leaves


def exhaustive(head: PrototypeHead, latent: Tensor, leaves: Tensor) -> list[tuple[float, int, int]]:
    """(distance, image, cell) of each prototype by trying everything, in double precision."""
    found = []
    prototypes = head.prototypes.detach().double()
    if head.similarity.form == "cosine":
        prototypes = prototypes / prototypes.square().sum(1, keepdim=True).sqrt()
    for prototype, child in zip(prototypes, head.grouping.prototype_child.tolist(), strict=True):
        best = (float(np.inf), -1, -1)
        for image, leaf in enumerate(leaves.tolist()):
            if head.taxonomy.leaves_below[child, leaf]:
                for cell, vector in enumerate(latent[image].double().flatten(1).T):
                    best = min(best, (float((vector - prototype).square().sum()), image, cell))
        found.append(best)
    return found


def batches(
    latent: Tensor, leaves: Tensor, order: NDArray[np.int64], size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for start in range(0, len(order), size):
        part = torch.as_tensor(order[start : start + size])
        yield part, leaves[part], latent[part]


def assert_equal(one: Projection, other: Projection) -> None:
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("size", [1, 4, 23])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_projection_finds_the_nearest_own_cell_in_any_order_and_batch_size(
    problem: Problem, size: int, seed: int | None
) -> None:
    head, latent, leaves = problem
    order = np.arange(23) if seed is None else np.random.default_rng(seed).permutation(23)
    found = complete(head, search(head, batches(latent, leaves, order, size)))
    expected = exhaustive(head, latent, leaves)
    assert found.image.tolist() == [image for _, image, _ in expected]
    assert found.cell.tolist() == [cell for _, _, cell in expected]
    np.testing.assert_allclose(found.distance, [distance for distance, _, _ in expected], atol=1e-12)
    for number, (_, image, cell) in enumerate(expected):
        assert torch.equal(found.vector[number], latent[image].flatten(1)[:, cell])


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("form", ["log1p", "log-ratio", "cosine"])
def test_every_kind_and_form_on_an_uneven_tree(kind: Kind, form: SimilarityForm) -> None:
    head, latent, leaves = make_problem(UNEVEN, kind, form, images=40)
    found = complete(head, search(head, batches(latent, leaves, np.arange(40), 16)))
    expected = exhaustive(head, latent, leaves)
    assert found.image.tolist() == [image for _, image, _ in expected]
    assert found.cell.tolist() == [cell for _, _, cell in expected]
    np.testing.assert_allclose(found.distance, [distance for distance, _, _ in expected], atol=1e-6)
    if form == "cosine":
        # The smallest distance on the sphere is the greatest cosine.
        flat = latent.double().flatten(2)
        prototypes = head.prototypes.detach().double()
        cosine = torch.einsum("pd,ndc->pnc", prototypes, flat) / prototypes.norm(dim=1)[:, None, None]
        cosine = cosine / flat.norm(dim=1)
        own = torch.from_numpy(head.taxonomy.leaves_below)[head.grouping.prototype_child][:, leaves]
        greatest = torch.where(own[:, :, None], cosine, -2).amax((1, 2))
        np.testing.assert_allclose(1 - found.distance / 2, greatest, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    levels=st.integers(2, 4),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    block=st.sampled_from([1, 200, 4_000_000]),
)
def test_ties_never_depend_on_batches_blocks_or_order(seed: int, levels: int, sizes: list[int], block: int) -> None:
    """Cells of a few values each tie all the time; the first image, then its first cell, must win every time."""
    generator = torch.Generator().manual_seed(seed)
    head, latent, leaves = make_problem(images=15, seed=seed)
    latent = torch.randint(0, levels, latent.shape, generator=generator).float()
    with torch.no_grad():
        head.prototypes[:] = torch.randint(0, levels, head.prototypes.shape, generator=generator).float()
    order = torch.randperm(15, generator=generator)
    cuts = list(itertools.takewhile(lambda cut: cut < 15, itertools.accumulate(itertools.cycle(sizes))))
    parts = torch.tensor_split(order, cuts)
    bound, projection.BLOCK = projection.BLOCK, block
    try:
        found = complete(head, search(head, ((part, leaves[part], latent[part]) for part in parts)))
    finally:
        projection.BLOCK = bound
    expected = exhaustive(head, latent, leaves)
    given_places = list(zip(found.distance.tolist(), found.image.tolist(), found.cell.tolist(), strict=True))
    assert given_places == expected


def test_near_ties_far_from_zero_are_resolved() -> None:
    """‖z‖² − 2zp + ‖p‖² of numbers near 1,000 loses all digits in which these cells differ; the difference does not."""
    head, latent, leaves = make_problem(images=30)
    generator = np.random.default_rng(0)
    steps = torch.from_numpy(generator.permutation(30 * 12).reshape(30, 3, 4)).float()
    latent = torch.full_like(latent, 1000.0)
    latent[:, 0] += steps * 2**-13  # the last bit of a float32 near 1,000
    with torch.no_grad():
        head.prototypes[:] = 1000.0
        head.prototypes[:, 0] -= 2.0
    found = complete(head, search(head, batches(latent, leaves, generator.permutation(30), 7)))
    expected = exhaustive(head, latent, leaves)
    assert found.image.tolist() == [image for _, image, _ in expected]
    assert found.cell.tolist() == [cell for _, _, cell in expected]


def test_results_are_the_same_to_the_last_bit_in_any_batches(problem: Problem) -> None:
    head, latent, leaves = problem
    whole = complete(head, search(head, batches(latent, leaves, np.arange(23), 23)))
    for size in (1, 2, 5, 16):
        order = np.random.default_rng(size).permutation(23)
        assert_equal(complete(head, search(head, batches(latent, leaves, order, size))), whole)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_parts_merge_to_the_whole_in_any_order(problem: Problem, processes: int) -> None:
    head, latent, leaves = problem
    whole = complete(head, search(head, batches(latent, leaves, np.arange(23), 8)))
    parts = [search(head, batches(latent, leaves, np.arange(23)[rank::processes], 3)) for rank in range(processes)]
    for order in itertools.permutations(parts):
        merged = order[0]
        for part in order[1:]:
            merged = merge(merged, part)
        assert_equal(complete(head, merged), whole)


def test_a_class_may_lack_images_in_one_part_but_not_in_all(problem: Problem) -> None:
    head, latent, leaves = problem
    only_first = search(head, batches(latent, leaves, np.array([0]), 1))
    lacking = only_first.image == NO_IMAGE
    assert lacking.any() and not lacking.all()
    assert torch.isinf(only_first.distance[lacking]).all()
    with pytest.raises(RuntimeError, match="has no training image of its own class"):
        complete(head, only_first)


def test_images_of_another_class_are_never_chosen(problem: Problem) -> None:
    head, latent, leaves = problem
    found = complete(head, search(head, batches(latent, leaves, np.arange(23), 6)))
    for child, image in zip(head.grouping.prototype_child.tolist(), found.image.tolist(), strict=True):
        assert head.taxonomy.leaves_below[child, leaves[image]]


def test_a_projected_prototype_stays_where_it_is(problem: Problem) -> None:
    head, latent, leaves = problem
    first = complete(head, search(head, batches(latent, leaves, np.arange(23), 6)))
    with torch.no_grad():
        head.prototypes.copy_(first.vector)
    again = complete(head, search(head, batches(latent, leaves, np.arange(23), 6)))
    assert torch.equal(again.vector, first.vector)
    assert torch.equal(again.distance, torch.zeros_like(again.distance))


def test_own_prototypes_are_those_of_the_nodes_on_the_path() -> None:
    taxonomy = Taxonomy.from_paths(UNEVEN)
    children = prototype_children(taxonomy, "hierarchical", 2)
    table = own_prototypes(taxonomy, torch.tensor(children))
    for row, labelled in zip(table.tolist(), taxonomy.label_nodes, strict=True):
        path = {node for node in taxonomy.path_at_level[labelled].tolist() if node >= 0}
        found = [prototype for prototype in row if prototype < len(children)]
        assert sorted(found) == [prototype for prototype, child in enumerate(children) if child in path]


def test_a_class_without_images_is_an_error(problem: Problem) -> None:
    head, latent, leaves = problem
    kept = (leaves != 0).nonzero()[:, 0].numpy()
    with pytest.raises(RuntimeError, match="of 'Q' has no training image"):
        complete(head, search(head, batches(latent, leaves, kept, 6)))


def test_pictures_of_an_inner_node_are_cut_for_it_and_for_what_is_above_it() -> None:
    head, latent, leaves = make_problem(UNEVEN, images=40)
    tree = head.taxonomy
    label = {tree.names[node]: number for number, node in enumerate(tree.label_nodes)}
    children = head.grouping.prototype_child
    # Of pictures 30 to 39, only that they show a B is known, and each prototype equals a cell of one of them.
    labels = leaves.clone()
    labels[30:] = label["A/B"]
    with torch.no_grad():
        for number in range(len(children)):
            head.prototypes[number] = latent[30 + number % 10, :, 0, 0]
    found = complete(head, search(head, [(torch.arange(40), labels, latent)]))
    for number, child in enumerate(children.tolist()):
        from_inner = int(found.image[number]) >= 30
        assert from_inner == (tree.names[child] in ("A", "A/B")), tree.names[child]
