"""The terms of the loss as the papers write them: loops over parents, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from protoserve.networks.head import PrototypeHead

Average = Literal["image", "parent"]
EPSILON = 0.1


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of scalars; 0 of none."""
    return sum(terms, start=torch.zeros((), dtype=torch.float64))


def smallest(terms: Sequence[Tensor]) -> Tensor:
    return min(terms, key=lambda term: term.item())


class Reference:
    """The network's head as the papers write it, with loops, in double precision, on its own copies of the numbers."""

    def __init__(self, head: PrototypeHead, latent: Tensor) -> None:
        self.taxonomy, self.form = head.taxonomy, head.similarity.form
        self.owner: list[int] = head.grouping.prototype_child.tolist()
        self.latent = latent.detach().double().requires_grad_()
        self.prototypes = head.prototypes.detach().double().requires_grad_()
        self.weight = head.weight.detach().double().requires_grad_()
        groups = [list(group.children) for group in head.taxonomy.groups]
        self.groups = groups if head.kind == "hierarchical" else [list(head.taxonomy.leaves)]
        self.distance = [
            [self.smallest_distance(image, prototype) for prototype in self.prototypes] for image in self.latent
        ]

    def smallest_distance(self, image: Tensor, prototype: Tensor) -> Tensor:
        found: list[Tensor] = []
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                cell = image[:, row, column]
                if self.form == "cosine":
                    found.append(2 - 2 * (cell @ prototype) / (cell.norm() * prototype.norm()))
                else:
                    found.append(((cell - prototype) ** 2).sum())
        return smallest(found)

    def similarity(self, image: int, prototype: int) -> Tensor:
        distance = self.distance[image][prototype]
        if self.form == "log1p":
            return torch.log(1 + 1 / (distance + EPSILON))
        return torch.log((distance + 1) / (distance + EPSILON)) if self.form == "log-ratio" else 1 - distance / 2

    def among(self, group: int) -> list[int]:
        return [p for p, child in enumerate(self.owner) if child in self.groups[group]]

    def logit(self, image: int, group: int, member: int) -> Tensor:
        """The sum of the contributions to one child."""
        slots = enumerate(self.among(group))
        return total([self.weight[group, member, slot] * self.similarity(image, p) for slot, p in slots])

    def conditionals(self, image: int, group: int) -> list[Tensor]:
        """The probability of each child given the parent."""
        powers = [torch.exp(self.logit(image, group, member)) for member in range(len(self.groups[group]))]
        return [power / total(powers) for power in powers]

    def on_path(self, group: int, leaf: int) -> list[int]:
        return [child for child in self.groups[group] if self.taxonomy.leaves_below[child, leaf]]

    def outside(self, leaves: Tensor) -> Tensor:
        """The mean KL(uniform ‖ conditional) at the parents that are not above an image's leaf."""
        found = torch.zeros(()).double()
        for image, leaf in enumerate(leaves.tolist()):
            others = [group for group in range(len(self.groups)) if not self.on_path(group, leaf)]
            for group in others:
                for chance in self.conditionals(image, group):
                    uniform = 1 / len(self.groups[group])
                    found = found + uniform * torch.log(uniform / chance) / len(others) / len(leaves)
        return found

    def leaf(self, leaves: Tensor) -> Tensor:
        """−log of the softmax over all leaves of the sums of the logits along their paths."""
        found = torch.zeros(()).double()
        for image, leaf in enumerate(leaves.tolist()):
            powers = []
            for other in range(len(self.taxonomy.leaves)):
                path = [
                    self.logit(image, group, self.groups[group].index(child))
                    for group in range(len(self.groups))
                    for child in self.on_path(group, other)
                ]
                powers.append(torch.exp(total(path)))
            found = found - torch.log(powers[leaf] / total(powers)) / len(leaves)
        return found

    def terms(self, leaves: Tensor, average: Average) -> dict[str, Tensor]:
        terms = dict.fromkeys(("cross_entropy", "cluster", "separation", "l1", "l2"), torch.zeros(()).double())
        for group, children in enumerate(self.groups):
            rows = []
            for image, leaf in enumerate(leaves.tolist()):
                if on_path := self.on_path(group, leaf):
                    own = [self.distance[image][p] for p in self.among(group) if self.owner[p] == on_path[0]]
                    other = [self.distance[image][p] for p in self.among(group) if self.owner[p] != on_path[0]]
                    chance = self.conditionals(image, group)[children.index(on_path[0])]
                    rows.append((-torch.log(chance), smallest(own), -smallest(other)))
            scale = len(leaves) if average == "image" else len(rows)
            for name, column in zip(("cross_entropy", "cluster", "separation"), zip(*rows, strict=True), strict=False):
                terms[name] = terms[name] + total(column) / scale
            for member, child in enumerate(children):
                for slot, p in enumerate(self.among(group)):
                    weight = self.weight[group, member, slot]
                    if self.owner[p] == child:
                        terms["l2"] = terms["l2"] + weight**2
                    else:
                        terms["l1"] = terms["l1"] + abs(weight)
        return terms

    def noise(self, average: Average) -> Tensor:
        found = torch.zeros(()).double()
        for group, children in enumerate(self.groups):
            for image in range(len(self.latent)):
                for chance in self.conditionals(image, group):
                    uniform = 1 / len(children)
                    found = found + uniform * torch.log(uniform / chance) / len(self.latent)
        return found if average == "parent" else found / len(self.groups)

    def gradients(self, term: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(term, [self.latent, self.prototypes, self.weight])
