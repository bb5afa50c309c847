"""The prototype autoencoder: its shapes, its scores against the published sum, and the form that people read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protoserve.errors import InputError
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder, code_size, map_sizes
from protoserve.networks.head import HeadOutput, PrototypeHead
from protoserve.networks.model_file import NetworkDescription, build_autoencoder, load_network, save_network
from protoserve.networks.similarity import Similarity
from protoserve.taxonomy import Taxonomy

LEAVES = ("Animal/Ape/Gibbon", "Animal/Ape/Orangutan", "Animal/Lion", "Tool/Knife", "Scuba")


def description(
    *, prototypes: int = 8, channels: tuple[int, ...] = (6, 4), size: tuple[int, int] = (14, 9), grey: bool = True
) -> NetworkDescription:
    taxonomy = Taxonomy.from_paths(LEAVES)
    return NetworkDescription(
        kind="autoencoder",
        taxonomy=taxonomy.to_dict(),
        input=InputRule(height=size[0], width=size[1], resize="stretch"),
        dimensions=code_size(channels, *size),
        similarity="negative-distance",
        epsilon=0.0,
        prototype_child=sorted(taxonomy.leaves[number % len(LEAVES)] for number in range(prototypes)),
        channels=list(channels),
        grey=grey,
    )


def random_network(seed: int = 0, prototypes: int = 8) -> PrototypeAutoencoder:
    torch.manual_seed(seed)
    network = build_autoencoder(description(prototypes=prototypes)).eval()
    with torch.no_grad():
        network.head.weight.copy_(torch.randn_like(network.head.weight))
    return network


def pictures(count: int, size: tuple[int, int] = (14, 9), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- shapes --------------------------------------------------------------------------------------------------


def test_the_published_network_has_its_published_sizes() -> None:
    network = build_autoencoder(description(prototypes=15, channels=(32, 32, 32, 10), size=(28, 28)))
    assert network.head.prototypes.shape == (15, 40)
    assert map_sizes(28, 28, 4) == [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]
    code = network.latent(network.features(pictures(2, (28, 28))))
    assert code.shape == (2, 40, 1, 1)
    # 3×3 kernels and biases of four layers each way.
    encoder = 9 * (1 * 32 + 32 * 32 + 32 * 32 + 32 * 10) + 32 + 32 + 32 + 10
    decoder = 9 * (10 * 32 + 32 * 32 + 32 * 32 + 32 * 1) + 32 + 32 + 32 + 1
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in network.decoder.parameters()) == decoder


@pytest.mark.parametrize("size", [(28, 28), (14, 9), (5, 17), (1, 2), (32, 31)])
@pytest.mark.parametrize("channels", [(3,), (4, 2), (4, 4, 2, 2)])
def test_the_decoder_draws_pictures_of_the_size_that_was_encoded(
    size: tuple[int, int], channels: tuple[int, ...]
) -> None:
    network = build_autoencoder(description(channels=channels, size=size, grey=False))
    drawn = network.decode(network.latent(network.features(pictures(3, size))).flatten(1))
    assert drawn.shape == (3, 3, *size)
    assert bool((drawn >= 0).all()) and bool((drawn <= 1).all())


def test_prototypes_must_be_as_long_as_the_code() -> None:
    taxonomy = Taxonomy.from_paths(LEAVES)
    head = PrototypeHead(taxonomy, list(taxonomy.leaves), 7, kind="flat", similarity=Similarity("negative-distance"))
    with pytest.raises(InputError, match=r"maps of \[6, 4\] give a code of 48 numbers, .* have 7"):
        PrototypeAutoencoder((6, 4), 14, 9, head)


def test_a_grey_network_sees_the_mean_of_the_colours() -> None:
    network = random_network()
    images = pictures(4)
    planes = network.planes(images)
    np.testing.assert_allclose(planes[:, 0].numpy(), images.double().mean(3).numpy() / 255, atol=1e-6)
    grey = images[..., :1].expand(-1, -1, -1, 3)
    np.testing.assert_allclose(network.planes(grey)[:, 0].numpy(), grey[..., 0].numpy() / 255, atol=1e-6)


# ---- scores --------------------------------------------------------------------------------------------------


def published_logits(network: PrototypeAutoencoder, images: torch.Tensor) -> NDArray[np.float64]:
    """[N, leaves]: sums of weighted distances (Li et al. 2018, eq. 2), in double precision, one by one."""
    code = network.latent(network.features(images)).flatten(1).detach().double().numpy()
    prototypes = network.head.prototypes.detach().double().numpy()
    weight = -network.head.weight[0].detach().double().numpy()
    result = np.zeros((len(code), weight.shape[0]))
    for image, leaf in np.ndindex(result.shape):
        for prototype, vector in enumerate(prototypes):
            result[image, leaf] += weight[leaf, prototype] * float(((code[image] - vector) ** 2).sum())
    return result


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_the_published_sums_of_distances(training: bool) -> None:
    network = random_network().train(training)
    images = pictures(5)
    found = network(images)
    expected = published_logits(network, images)
    np.testing.assert_allclose(found.group_logits[:, 0].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    leaves = list(network.head.taxonomy.leaves)
    probability = found.log_probability.exp().detach().numpy()
    np.testing.assert_allclose(probability[:, leaves], softmax(expected), atol=1e-5)


def test_inner_nodes_are_the_sums_of_their_leaves() -> None:
    network = random_network()
    taxonomy = network.head.taxonomy
    probability = network(pictures(5)).log_probability.exp().detach().numpy()
    leaves = probability[:, list(taxonomy.leaves)]
    for node in range(len(taxonomy.nodes)):
        np.testing.assert_allclose(probability[:, node], leaves[:, taxonomy.leaves_below[node]].sum(1), atol=1e-6)


# ---- the form that people read -------------------------------------------------------------------------------


def typical(network: PrototypeAutoencoder, images: torch.Tensor) -> torch.Tensor:
    output: HeadOutput = network(images)
    return output.distance.detach().mean(0)


def reference_of(network: PrototypeAutoencoder) -> torch.Tensor:
    """[prototypes] the number that is added to each prototype's similarity, float64."""
    assert network.head.reference is not None
    return network.head.reference.double()


@pytest.mark.parametrize("seed", range(3))
def test_recentring_changes_no_probability(seed: int) -> None:
    network, images = random_network(seed), pictures(20, seed=seed)
    before = softmax(published_logits(network, images))
    network.head.recentre_distances(typical(network, images))
    leaves = list(network.head.taxonomy.leaves)
    after = network(images).log_probability.exp().detach().numpy()[:, leaves]
    np.testing.assert_allclose(after, before, atol=1e-5)
    np.testing.assert_allclose(network.head.weight.detach().sum(1).numpy(), 0.0, atol=1e-5)
    # The logits themselves are still sums of distances: the references add nothing to any of them.
    added = network.head.weight[0].detach().double() @ reference_of(network)
    np.testing.assert_allclose(added.numpy(), 0.0, atol=1e-4)


def test_references_are_the_nearest_to_the_typical_distances() -> None:
    """Of all references that change no logit: any step among those leads farther away."""
    network, images = random_network(), pictures(20)
    wanted = typical(network, images).double().numpy()
    network.head.recentre_distances(torch.from_numpy(wanted))
    reference = reference_of(network).numpy()
    weight = network.head.weight[0].detach().double().numpy()
    _, values, directions = np.linalg.svd(weight)
    free = directions[int((values > 1e-6).sum()) :]
    assert len(free) == 8 - 4
    np.testing.assert_allclose(free @ (wanted - reference), 0.0, atol=1e-4)


def test_with_too_few_prototypes_the_sum_stays_as_published() -> None:
    network, images = random_network(prototypes=3), pictures(10)
    before = softmax(published_logits(network, images))
    network.head.recentre_distances(typical(network, images))
    np.testing.assert_allclose(reference_of(network).numpy(), 0.0, atol=1e-5)
    found = network(images).log_probability.exp().detach().numpy()[:, list(network.head.taxonomy.leaves)]
    np.testing.assert_allclose(found, before, atol=1e-5)


@torch.no_grad()
def test_a_near_prototype_is_the_strongest_evidence() -> None:
    """A prototype per leaf, each the code of a picture: by sums of distances that prototype adds nothing to its own
    leaf, and by references the most."""
    network, images = random_network(prototypes=5), pictures(5)
    network.head.prototypes.copy_(network.latent(network.features(images)).flatten(1))
    network.head.reset_weight()
    rows = torch.arange(5)
    before = network.explain(images, top_k=5)
    deepest = (before.path >= 0).sum(1) - 1
    assert before.path[rows, deepest].tolist() == network.head.grouping.prototype_child.tolist()
    assert before.evidence_prototype[rows, deepest, 4].tolist() == list(range(5))
    network.head.recentre_distances(typical(network, images))
    after = network.explain(images, top_k=5)
    assert after.path.tolist() == before.path.tolist()
    assert after.evidence_prototype[rows, deepest, 0].tolist() == list(range(5))


@torch.no_grad()
def test_evidence_adds_up_to_the_logit() -> None:
    network, images = random_network(), pictures(6)
    network.head.recentre_distances(typical(network, images))
    found = network.explain(images, top_k=8)
    shares = found.evidence_weight * found.evidence_similarity
    np.testing.assert_allclose(found.evidence_contribution.numpy(), shares.numpy(), atol=1e-5)
    is_leaf = {node: place for place, node in enumerate(network.head.taxonomy.leaves)}
    expected = published_logits(network, images)
    for image, path in enumerate(found.path.tolist()):
        for level, node in enumerate(path):
            total = float(found.evidence_contribution[image, level].double().sum())
            if node in is_leaf:
                assert total == pytest.approx(expected[image, is_leaf[node]], abs=1e-4)
            elif node >= 0:
                assert total == 0.0
                assert found.evidence_prototype[image, level].tolist() == [-1] * 8
    # One cell is the whole picture: its map is the similarity.
    assert found.evidence_map.shape == (6, 3, 8, 1, 1)
    np.testing.assert_allclose(found.evidence_map[..., 0, 0].numpy(), found.evidence_similarity.numpy(), atol=1e-5)


def test_a_checkpoint_gives_the_same_network_back(tmp_path: Path) -> None:
    network, images = random_network(), pictures(4)
    network.head.recentre_distances(typical(network, images))
    save_network(tmp_path / "model.pt", network, description())
    stored, found, sources = load_network(tmp_path / "model.pt")
    assert isinstance(stored, PrototypeAutoencoder)
    assert (found, sources) == (description(), None)
    assert torch.equal(stored(images).log_probability, network(images).log_probability)
    assert torch.equal(stored.decode(stored.head.prototypes), network.decode(network.head.prototypes))
