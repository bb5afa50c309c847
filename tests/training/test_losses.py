"""Every loss term against loops over parents in double precision, gradients included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from protoserve.networks.head import HeadOutput, PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.taxonomy import Kind, Taxonomy
from tests.training.loss_reference import EPSILON, Average, Reference, total
from training.losses import Answered, LossTables, distillation, leaf_cross_entropy, loss_tables, noise_loss, objective
from training.sections.data import LossConfig

# Leaves at depths 1 to 4, and a parent with an only child.
LEAVES = ("A/B/C/x", "A/B/C/y", "A/B/z", "A/w", "Q", "R/S/only", "R/T/u", "R/T/v")
KINDS: tuple[Kind, ...] = ("hierarchical", "flat")
FORMS: tuple[SimilarityForm, ...] = ("log1p", "log-ratio", "cosine")


def random_head(kind: Kind, form: SimilarityForm = "log1p") -> PrototypeHead:
    taxonomy = Taxonomy.from_paths(LEAVES)
    torch.manual_seed(0)
    children = prototype_children(taxonomy, kind, 2, 2)
    head = PrototypeHead(taxonomy, children, 6, kind=kind, similarity=Similarity(form, EPSILON))
    with torch.no_grad():
        head.weight.add_(0.3 * torch.randn_like(head.weight))
        if form == "cosine":
            head.prototypes.sub_(0.5)
    return head


def random_latent(count: int, form: SimilarityForm, seed: int = 0) -> Tensor:
    latent = torch.rand(count, 6, 2, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(latent - 0.5, dim=1) if form == "cosine" else latent


def assert_gradients_agree(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for name, one, other in zip(("latent", "prototypes", "weight"), given, wanted, strict=True):
        scale = float(other.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(one.double(), other, atol=2e-5 * scale, rtol=1e-3, msg=f"{name}: {{}}".format)


def assert_the_heads_gradients_agree(term: Tensor, head: PrototypeHead, wanted: Sequence[Tensor]) -> None:
    given = torch.autograd.grad(term, [head.prototypes, head.weight])
    for one, other in zip(given, wanted[1:], strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5 * float(other.abs().max()), rtol=1e-3)


def losses(
    head: PrototypeHead, output: HeadOutput, leaves: Tensor, tables: LossTables, config: LossConfig
) -> SimpleNamespace:
    """The terms and their total, as attributes."""
    return SimpleNamespace(**objective(Answered(head, output, leaves, tables, config), config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("average", "training"),
    [("image", True), ("parent", True), ("image", False)],
    ids=["image", "parent", "image, evaluation"],
)
def test_terms_and_gradients_agree_with_loops_in_double_precision(
    kind: Kind, form: SimilarityForm, average: Average, training: bool
) -> None:
    head = random_head(kind, form).train(training)
    latent = random_latent(6, form).requires_grad_()
    leaves = torch.from_numpy(np.random.default_rng(0).integers(0, len(LEAVES), 6))
    config = LossConfig(cross_entropy=2.0, cluster=0.3, separation=0.2, l1=0.01, l2=0.02, average=average)
    found = losses(head, head(latent), leaves, loss_tables(head), config)

    reference = Reference(head, latent)
    expected = reference.terms(leaves, average)
    for name, value in expected.items():
        assert float(getattr(found, name).detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
    weighted = total([getattr(config, name) * value for name, value in expected.items()])
    assert float(found.total.detach()) == pytest.approx(float(weighted.detach()), rel=1e-5)
    given = torch.autograd.grad(found.total, [latent, head.prototypes, head.weight])
    wanted = reference.gradients(weighted)
    if form == "cosine":
        # Cells live on the sphere, so only what lies along it counts; the reference's angle takes any length.
        cells = latent.detach().double()
        inward = (given[0].double() * cells).sum(1, keepdim=True) * cells
        given = (given[0].double() - inward, *given[1:])
    assert_gradients_agree(given, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("term", ["outside", "leaf"])
def test_terms_between_branches_agree_with_loops_in_double_precision(
    kind: Kind, form: SimilarityForm, term: str
) -> None:
    head = random_head(kind, form)
    latent = random_latent(5, form, seed=7)
    leaves = torch.tensor([0, 3, 4, 5, 7])
    nothing = {"cross_entropy": 0.0, "cluster": 0.0, "separation": 0.0, "l1": 0.0, "l2": 0.0}
    found = losses(head, head(latent), leaves, loss_tables(head), LossConfig.model_validate({**nothing, term: 3.0}))
    reference = Reference(head, latent)
    expected = getattr(reference, term)(leaves)
    assert float(getattr(found, term).detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-6)
    assert float(found.total.detach()) == pytest.approx(3.0 * float(expected.detach()), rel=1e-5, abs=1e-6)
    assert set(vars(found)) == {"total", *nothing, term}
    if (kind, term) == ("flat", "outside"):
        # One softmax over all leaves has no outside.
        assert float(found.outside.detach()) == 0.0
        return
    assert_the_heads_gradients_agree(found.total, head, reference.gradients(3.0 * expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("average", ["image", "parent"])
def test_noise_agrees_with_loops_in_double_precision(kind: Kind, form: SimilarityForm, average: Average) -> None:
    head = random_head(kind, form)
    latent = random_latent(4, form, seed=5)
    found = noise_loss(head, head(latent), LossConfig(average=average))
    reference = Reference(head, latent)
    expected = reference.noise(average)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_the_heads_gradients_agree(found, head, reference.gradients(expected))


def test_the_noise_loss_is_0_at_uniform_conditionals_and_descends_to_them() -> None:
    head = random_head("hierarchical")
    with torch.no_grad():
        head.weight.zero_()
    latent = random_latent(4, "log1p")
    assert float(noise_loss(head, head(latent), LossConfig()).detach()) == pytest.approx(0.0, abs=1e-6)
    head.reset_weight()
    with torch.no_grad():
        head.prototypes[:] = latent[0, :, 0, 0] + 0.05 * torch.randn_like(head.prototypes)
    optimiser = torch.optim.Adam([head.prototypes], lr=0.03)
    spreads = []
    for _ in range(40):
        output = head(latent)
        loss = noise_loss(head, output, LossConfig())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        spreads.append(float(loss.detach()))
    assert spreads[-1] < 0.2 * spreads[0]


def test_two_children_worked_by_hand() -> None:
    """One parent, one cell at 0, prototypes at distances 1 and 3: every term follows from four numbers."""
    taxonomy = Taxonomy.from_paths(["Q", "R"])
    head = PrototypeHead(taxonomy, [0, 1], 1, similarity=Similarity(epsilon=1.0))
    head.reset_weight()
    with torch.no_grad():
        head.prototypes[:] = torch.tensor([[1.0], [math.sqrt(3.0)]])
    output = head(torch.zeros(1, 1, 1, 1))
    config = LossConfig(cross_entropy=1, cluster=1, separation=1, l1=1, l2=1)
    found = losses(head, output, torch.tensor([0]), loss_tables(head), config)
    # Similarities log 1.5 and log 1.25; the logits differ by 1.5 × (log 1.5 − log 1.25) = log 1.2^1.5.
    chance = 1.2**1.5 / (1 + 1.2**1.5)
    assert float(found.cross_entropy.detach()) == pytest.approx(-math.log(chance), abs=1e-6)
    assert float(found.cluster.detach()) == pytest.approx(1.0, abs=1e-6)
    assert float(found.separation.detach()) == pytest.approx(-3.0, abs=1e-6)
    assert float(found.l1.detach()) == pytest.approx(1.0, abs=1e-6)
    assert float(found.l2.detach()) == pytest.approx(2.0, abs=1e-6)
    divergence = 0.5 * math.log(0.5 / chance) + 0.5 * math.log(0.5 / (1 - chance))
    assert float(noise_loss(head, output, config).detach()) == pytest.approx(divergence, abs=1e-6)


def test_averaged_over_images_cross_entropy_is_the_leaf_likelihood() -> None:
    head = random_head("hierarchical")
    leaves = torch.arange(len(LEAVES))
    output = head(torch.rand(len(LEAVES), 6, 3, 3))
    found = losses(head, output, leaves, loss_tables(head), LossConfig(average="image"))
    likelihood = output.log_probability[leaves, torch.tensor(head.taxonomy.leaves)].mean()
    assert float(found.cross_entropy.detach()) == pytest.approx(-float(likelihood.detach()), abs=1e-5)


def test_a_parent_does_not_see_images_of_other_branches() -> None:
    head = random_head("hierarchical")
    tables = loss_tables(head)
    taxonomy = head.taxonomy
    leaf = {taxonomy.names[node]: place for place, node in enumerate(taxonomy.leaves)}
    latent = random_latent(12, "log1p")
    below = torch.tensor([leaf[name] for name in ("A/B/C/x", "A/B/z", "A/w", "A/B/C/y", "A/w", "A/B/z")])
    outside = torch.full((6,), leaf["Q"])
    config = LossConfig(average="parent")
    alone = losses(head, head(latent[:6]), below, tables, config)
    beside = losses(head, head(latent), torch.cat([below, outside]), tables, config)
    # The root's own mean is all that changes.
    change = 0.0
    for images, sign in (((latent[:6], below), -1), ((latent, torch.cat([below, outside])), 1)):
        reference = Reference(head, images[0])
        reference.groups = reference.groups[:1]
        change += sign * float(reference.terms(images[1], "parent")["cluster"].detach())
    assert float((beside.cluster - alone.cluster).detach()) == pytest.approx(change, abs=1e-5)


def test_distillation_against_plain_loops() -> None:
    """Cross-entropy of softened conditionals under a softened teacher, parent by parent, in float64; gradients, too."""
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "A/z/u", "A/z/v", "B", "C/only"])
    generator = torch.Generator().manual_seed(5)
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 2), 4).double()
    tables = loss_tables(head)
    leaves = torch.tensor([0, 1, 2, 3, 4, 5, 2])
    teacher = torch.randn(len(leaves), len(taxonomy.leaves), generator=generator, dtype=torch.float64)
    latent = torch.rand(len(leaves), 4, 2, 3, generator=generator, dtype=torch.float64)
    output = head(latent)
    found = distillation(head, output, leaves, tables, teacher, 2.0)

    expected = torch.zeros((), dtype=torch.float64)
    for image, leaf in enumerate(leaves.tolist()):
        shares = (teacher[image] / 2).exp() / (teacher[image] / 2).exp().sum()
        for number, group in enumerate(taxonomy.groups):
            children = list(group.children)
            if not any(taxonomy.leaves_below[child][leaf] for child in children):
                continue
            wanted = torch.stack([shares[torch.from_numpy(taxonomy.leaves_below[child])].sum() for child in children])
            wanted = wanted / wanted.sum()
            logits = output.group_logits[image, number, : len(children)] / 2
            expected = expected - 2 * (wanted * (logits - logits.exp().sum().log())).sum()
    expected = expected / len(leaves)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    one = torch.autograd.grad(found, head.prototypes, retain_graph=True)[0]
    other = torch.autograd.grad(expected, head.prototypes)[0]
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert one.abs().max() > 0


def test_a_teacher_with_the_networks_logits_costs_their_entropy_and_has_no_gradient() -> None:
    taxonomy = Taxonomy.from_paths(["x", "y", "z"])
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 1), 4).double()
    output = head(torch.rand(2, 4, 2, 2, dtype=torch.float64))
    term = distillation(head, output, torch.tensor([0, 2]), loss_tables(head), output.group_logits[:, 0].detach(), 1.0)
    probability = output.group_logits[:, 0].softmax(1)
    torch.testing.assert_close(term, -(probability * probability.log()).sum(1).mean())
    gradient = torch.autograd.grad(term, head.prototypes)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


TERMS = LossConfig(cross_entropy=2.0, cluster=0.3, separation=0.2, l1=0.01, l2=0.02, outside=1.0, leaf=1.0)


def test_leaves_cost_the_same_whether_or_not_there_are_labels_of_inner_nodes() -> None:
    head = random_head("hierarchical")
    output, leaves = head(random_latent(8, "log1p")), torch.arange(8)
    plain = vars(losses(head, output, leaves, loss_tables(head), TERMS))
    beside = vars(losses(head, output, leaves, loss_tables(head, inner=True), TERMS))
    assert plain.keys() == beside.keys() and plain
    for name, value in plain.items():
        torch.testing.assert_close(beside[name], value, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", ["A", "A/B", "R/S"])
def test_a_picture_of_an_inner_node_teaches_the_levels_down_to_there_alone(name: str) -> None:
    head = random_head("hierarchical")
    tree, tables = head.taxonomy, loss_tables(head, inner=True)
    node = tree.index[name]
    label = int(np.flatnonzero(tree.label_nodes == node)[0])
    output = head(random_latent(1, "log1p"))
    found = losses(head, output, torch.tensor([label]), tables, TERMS)
    chance = output.log_probability[0, node]
    torch.testing.assert_close(found.cross_entropy, -chance, rtol=1e-5, atol=1e-6)
    below = torch.from_numpy(tree.leaves_of_label[label])
    logits = output.group_logits
    groups = {group.parent: number for number, group in enumerate(tree.groups)}
    sums = []
    for leaf in tree.leaves:
        path = [step for step in tree.path_at_level[leaf] if step >= 0]
        steps = [(groups[int(tree.parent[step])], step) for step in path if int(tree.parent[step]) in groups]
        sums.append(total([logits[0, group, tree.groups[group].children.index(step)] for group, step in steps]))
    leaf_logits = torch.stack(sums)
    expected = leaf_logits.logsumexp(0) - leaf_logits[below].logsumexp(0)
    torch.testing.assert_close(found.leaf.double(), expected.double(), rtol=1e-5, atol=1e-6)
    # Nothing is said about the groups at or below the node, by whatever term but those of the weights.
    parts = found.cross_entropy + found.cluster - found.separation + found.outside
    [gradient] = torch.autograd.grad(parts, logits, retain_graph=True)
    for parent, group in groups.items():
        silent = parent >= 0 and bool(tree.path_at_level[parent, len(tree.nodes[node]) - 1] == node)
        assert bool(gradient[0, group].any()) != silent, tree.names[parent]


def test_label_smoothing_of_leaves_is_torchs() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    possible = torch.cat([torch.eye(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)])
    torch.testing.assert_close(leaf_cross_entropy(logits, labels, None, 0.1), expected)
    torch.testing.assert_close(leaf_cross_entropy(logits, labels, possible, 0.1), expected)
    # Of a picture that may be of any leaf, only the smoothing remains.
    nothing = leaf_cross_entropy(logits[:1], torch.tensor([3]), possible)
    torch.testing.assert_close(nothing, torch.zeros(()), atol=1e-6, rtol=0)
