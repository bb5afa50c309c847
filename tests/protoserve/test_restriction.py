"""Restrictions: probabilities given what can be in a picture, worked out leaf by leaf; names that can't be used."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protoserve import restriction as module
from protoserve.errors import InputError
from protoserve.restriction import Restriction, restriction_of, unrestricted
from protoserve.taxonomy import Taxonomy

LEAVES = ("Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Garlic", "Milk/Oat/Plain", "Milk/Cow/Thick")
TREE = Taxonomy.from_paths(LEAVES)
NAMES = [TREE.names[leaf] for leaf in TREE.leaves]


def leaf_log_probability(images: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    logits = np.random.default_rng(seed).normal(0, 2, (images, len(NAMES)))
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def by_name(values: dict[str, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One picture's log-probabilities of the leaves; those that are not named have next to none."""
    return np.array([[values.get(name, -50.0) for name in NAMES]])


def by_hand(log_probability: Any, weight: dict[str, float]) -> dict[str, float]:
    """Every node's restricted probability for one picture, summed in pure Python."""
    mass = {name: float(np.exp(value)) * weight[name] for name, value in zip(NAMES, log_probability, strict=True)}
    total = sum(mass.values())
    return {
        node: sum(part for leaf, part in mass.items() if leaf == node or leaf.startswith(f"{node}/")) / total
        for node in TREE.names
    }


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0


@given(
    st.lists(st.sampled_from(TREE.names), max_size=3, unique=True),
    st.lists(st.sampled_from(TREE.names), max_size=3, unique=True),
    st.dictionaries(st.sampled_from(TREE.names), st.floats(0.01, 100), max_size=2),
)
def test_probability_is_that_given_the_restriction(allow: list[str], deny: list[str], prior: dict[str, float]) -> None:
    def inside(leaf: str, nodes: list[str]) -> bool:
        return any(leaf == node or leaf.startswith(f"{node}/") for node in nodes)

    weight = {leaf: float((not allow or inside(leaf, allow)) and not inside(leaf, deny)) for leaf in NAMES}
    for node in sorted(prior, key=len):
        for leaf in NAMES:
            if weight[leaf] and inside(leaf, [node]):
                weight[leaf] = prior[node]
    if set(allow) & set(deny) or not any(weight.values()):
        with pytest.raises(InputError):
            restriction_of(TREE, allow=allow, deny=deny, prior=prior)
        return
    restriction = restriction_of(TREE, allow=allow, deny=deny, prior=prior)
    given_log = leaf_log_probability(4)
    found = np.exp(restriction.log_probability(given_log))
    for image in range(4):
        expected = by_hand(given_log[image], weight)
        assert dict(zip(TREE.names, found[image].tolist(), strict=True)) == pytest.approx(expected, abs=1e-9)
        excluded = sum(np.exp(given_log[image, leaf]) for leaf, name in enumerate(NAMES) if not weight[name])
        assert restriction.excluded(given_log)[image] == pytest.approx(excluded, abs=1e-9)
    path = restriction.path(restriction.log_probability(given_log))
    best = (np.exp(given_log) * [weight[name] for name in NAMES]).argmax(axis=1)
    assert path.tolist() == TREE.path_at_level[np.array(TREE.leaves)[best]].tolist()


def test_an_improbable_list_keeps_its_digits() -> None:
    # All that the network says about the allowed leaves is far below float32's smallest number.
    log_probability = by_name({"Fruit/Apple/Gala": -1000.0, "Fruit/Apple/Fuji": -1001.0, "Garlic": 0.0})
    found = restriction_of(TREE, allow=["Fruit/Apple"]).log_probability(log_probability)
    assert np.exp(found[0, TREE.index["Fruit/Apple/Gala"]]) == pytest.approx(1 / (1 + np.exp(-1)))


def test_depth_ends_paths_and_their_ends_compete() -> None:
    # Gala and Fuji share Apple's probability: together they beat Garlic, which beats each alone.
    log_probability = by_name({"Fruit/Apple/Gala": np.log(0.3), "Fruit/Apple/Fuji": np.log(0.3), "Garlic": np.log(0.4)})
    whole, cut = unrestricted(TREE), restriction_of(TREE, depth={"Fruit": 2})
    assert TREE.names[whole.path(whole.log_probability(log_probability))[0, 0]] == "Garlic"
    path = cut.path(cut.log_probability(log_probability))
    assert [TREE.names[node] for node in path[0] if node >= 0] == ["Fruit", "Fruit/Apple"]
    assert not cut.allowed[TREE.index["Fruit/Apple/Gala"]] and cut.allowed[TREE.index["Milk/Oat/Plain"]]


def test_what_follows_from_the_list_alone() -> None:
    assert unrestricted(TREE).certain_levels == 0
    assert restriction_of(TREE, allow=["Fruit/Apple"]).certain_levels == 2
    assert restriction_of(TREE, allow=["Fruit/Lemon"]).certain_levels == 2
    assert restriction_of(TREE, allow=["Fruit/Lemon", "Garlic"]).certain_levels == 0

    def only(restriction: Restriction) -> list[str]:
        return [TREE.names[node] for node in np.flatnonzero(restriction.only_child)]

    # Oat's only child has no sibling at all, so no list made it certain.
    assert only(restriction_of(TREE, deny=["Fruit/Apple", "Milk/Cow"])) == ["Fruit/Lemon", "Milk/Oat"]
    assert only(unrestricted(TREE)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ["Fruit/Aple"]}, r"allow: the taxonomy has no node 'Fruit/Aple'.*'Fruit/Apple'"),
        ({"deny": ["Garlik"]}, r"deny: .*'Garlik'.*'Garlic'"),
        ({"allow": ["Fruit"], "deny": ["Fruit"]}, "'Fruit' is both allowed and denied"),
        ({"allow": ["Fruit/Apple"], "deny": ["Fruit"]}, "allow=Fruit/Apple and deny=Fruit leave no class"),
        ({"deny": ["Fruit", "Garlic", "Milk"]}, "deny=Fruit,Garlic,Milk leave no class"),
        ({"depth": {"Fruit/Apple": 1}}, "depth=Fruit/Apple:1: give a level from 2"),
        ({"depth": {"Fruit": 9}}, "depth=Fruit:9: .* to 3"),
        ({"prior": {"Fruit": 0.0}}, "prior=Fruit:0: give a number above 0"),
        ({"prior": {"Froot": 2.0}}, "prior: .*'Froot'.*'Fruit'"),
    ],
)
def test_errors_name_the_value_and_the_cure(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        restriction_of(TREE, **options)
