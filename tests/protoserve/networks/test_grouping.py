"""Groups in buckets: padding changes no answer and stays small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protoserve.errors import InputError
from protoserve.graph_signature import named_arrays
from protoserve.networks import grouping
from protoserve.networks.fused_head import explain
from protoserve.networks.grouping import make_buckets
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Kind, Taxonomy

UNEVEN = (
    *(f"A/{n}" for n in range(40)),
    *(f"B/x/{n}" for n in range(3)),
    "B/y",
    *(f"C/{n}/{m}" for n in range(5) for m in "uvw"),
)


def head(kind: Kind = "hierarchical") -> PrototypeHead:
    torch.manual_seed(0)
    taxonomy = Taxonomy.from_paths(UNEVEN)
    result = PrototypeHead(taxonomy, prototype_children(taxonomy, kind, 3, inner_factor=2), 8, kind=kind).eval()
    with torch.no_grad():
        result.weight.add_(torch.randn_like(result.weight))
        result.temperature.uniform_(0.5, 2.0)
    return result


@pytest.mark.parametrize("top_k", [2, 30])
def test_many_buckets_answer_as_one(monkeypatch: pytest.MonkeyPatch, top_k: int) -> None:
    latent = torch.rand(3, 8, 2, 3)
    with torch.inference_mode():
        one = head()
        assert len(one.grouping.buckets) == 1
        expected, shown = one(latent), explain(one, latent, top_k)
        monkeypatch.setattr(grouping, "BUCKET_COST", 1)
        many = head()
        assert len(many.grouping.buckets) > 2
        found, explained = many(latent), explain(many, latent, top_k)
    for name in ("group_logits", "conditional", "log_probability"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)
    for name, value in named_arrays(shown).items():
        torch.testing.assert_close(getattr(explained, name), value, msg=name)
    conditional, log_probability = many.node_log_probability(expected.group_logits)
    torch.testing.assert_close(conditional, expected.conditional)
    torch.testing.assert_close(log_probability, expected.log_probability)


def test_sums_over_leaves_are_the_same_without_the_dense_table(monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.rand(3, 8, 2, 3)
    with torch.inference_mode():
        expected = head("flat")(latent).log_probability
        monkeypatch.setattr(grouping, "MAX_DENSE_ENTRIES", 0)
        other = head("flat")
        assert other.grouping.below is None
        torch.testing.assert_close(other(latent).log_probability, expected)


def test_padding_stays_small_where_one_group_is_huge() -> None:
    generator = np.random.default_rng(0)
    members = np.concatenate([generator.integers(2, 12, 800), [1_000]])
    slots = 10 * members
    buckets = make_buckets(members, slots)
    assert sorted(np.concatenate(buckets).tolist()) == list(range(801))
    padded = sum(len(chosen) * members[chosen].max() * slots[chosen].max() for chosen in buckets)
    assert padded < 1.1 * (members * slots).sum()
    assert len(buckets) < 10


def test_prototypes_out_of_order_are_refused() -> None:
    taxonomy = Taxonomy.from_paths(["A/a", "A/b", "B"])
    wrong = [taxonomy.index[name] for name in ("A", "B", "A/a", "A/b", "B")]
    with pytest.raises(InputError, match="side by side"):
        PrototypeHead(taxonomy, wrong, 4)
