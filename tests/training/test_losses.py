"""Every loss term against loops over parents in double precision, gradients included."""

import numpy as np
import pytest
import torch

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Taxonomy
from training.config import LossConfig
from training.losses import loss_tables, losses

LEAVES = ("A/B/C/x", "A/B/C/y", "A/B/z", "A/w", "Q", "R/S/only", "R/T/u", "R/T/v")


def brute_force(head, latent, leaves, average):
    """The terms as the papers write them: for each parent, over the images below it."""
    taxonomy = head.taxonomy
    flat = latent.flatten(2)
    distance = (flat[:, None] - head.prototypes[None, :, :, None]).square().sum(2).amin(2)
    similarity = torch.log1p(1 / (distance + head.epsilon))
    weight = head.effective_weight()
    below = taxonomy.leaves_below
    groups = [g.children for g in taxonomy.groups] if head.kind == "hierarchical" else [taxonomy.leaves]
    owner = head.prototype_child.tolist()
    terms = {"cross_entropy": 0.0, "cluster": 0.0, "separation": 0.0}
    for number, children in enumerate(groups):
        prototypes = [p for p, child in enumerate(owner) if child in children]
        rows = []
        for image, leaf in enumerate(leaves.tolist()):
            on_path = [child for child in children if below[child, leaf]]
            if not on_path:
                continue
            own = [p for p in prototypes if owner[p] == on_path[0]]
            other = [p for p in prototypes if owner[p] != on_path[0]]
            logits = weight[number, : len(children), : len(prototypes)] @ similarity[image, prototypes]
            rows.append(
                (
                    -logits.log_softmax(0)[list(children).index(on_path[0])],
                    distance[image, own].min(),
                    -distance[image, other].min(),
                )
            )
        scale = len(leaves) if average == "image" else max(1, len(rows))
        for name, column in zip(terms, zip(*rows, strict=True), strict=True) if rows else ():
            terms[name] = terms[name] + sum(column) / scale
    own_mask = torch.zeros_like(weight, dtype=torch.bool)
    for number, children in enumerate(groups):
        prototypes = [p for p, child in enumerate(owner) if child in children]
        for slot, p in enumerate(prototypes):
            own_mask[number, list(children).index(owner[p]), slot] = True
    terms["l1"] = weight[~own_mask].abs().sum()
    terms["l2"] = weight[own_mask].square().sum()
    return terms


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("average", ["image", "parent"])
def test_terms_and_gradients_agree_with_loops(kind, average):
    taxonomy = Taxonomy.from_paths(LEAVES)
    torch.manual_seed(0)
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, kind, 2), 6, kind=kind, epsilon=0.1).double()
    with torch.no_grad():
        head.weight += 0.3 * torch.randn_like(head.weight)
    latent = torch.rand(12, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    leaves = torch.from_numpy(np.random.default_rng(0).integers(0, len(LEAVES), 12))
    config = LossConfig(cross_entropy=2.0, cluster=0.3, separation=0.2, l1=0.01, l2=0.02, average=average)

    torch.set_default_dtype(torch.float64)
    try:
        found = losses(head, head(latent), leaves, loss_tables(head), config)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = brute_force(head, latent, leaves, average)
    for name, value in expected.items():
        assert float(getattr(found, name).detach()) == pytest.approx(float(value.detach()), abs=1e-9), name

    total = sum(getattr(config, name) * value for name, value in expected.items())
    wanted = torch.autograd.grad(total, [latent, head.prototypes, head.weight])
    given = torch.autograd.grad(found.total, [latent, head.prototypes, head.weight])
    for one, other in zip(wanted, given, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_every_image_counting_once_makes_the_leaf_likelihood():
    taxonomy = Taxonomy.from_paths(LEAVES)
    torch.manual_seed(0)
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 2), 6)
    leaves = torch.arange(len(LEAVES))
    output = head(torch.rand(len(LEAVES), 6, 3, 3))
    found = losses(head, output, leaves, loss_tables(head), LossConfig(average="image"))
    likelihood = output.log_probability[leaves, torch.tensor(taxonomy.leaves)].mean()
    assert float(found.cross_entropy.detach()) == pytest.approx(-float(likelihood.detach()), abs=1e-5)
