"""The prototype head: distances, similarities, conditionals of all parents and path sums, without a loop over nodes.

One module for everything: training runs it eagerly, and export traces the same `forward` and `explain` into the
fused graph (ONNX, TorchScript), so that there is one formula. Shapes: N pictures, D dimensions, C = rows × columns
cells, P prototypes, G groups of competing nodes, M members of the largest group, Q prototypes of the largest
group, V nodes of the taxonomy, L levels.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from protoserve.networks.similarity import Similarity, on_sphere, similarity, similarity_at
from protoserve.taxonomy import Group, Taxonomy

Kind = Literal["hierarchical", "flat"]
# Stands for "no such place" in products and top-k; −inf would turn into NaN under multiplication.
NEGATIVE = -1e30


class HeadOutput(NamedTuple):
    """distance, similarity [N, P] at each prototype's best cell; cell int64 [N, P]; group_logits [N, G, M] (−1e30
    where a group has fewer members); conditional and log_probability [N, V], natural logarithms."""

    distance: Tensor
    similarity: Tensor
    cell: Tensor
    group_logits: Tensor
    conditional: Tensor
    log_probability: Tensor


class Explanation(NamedTuple):
    """The outputs of the exported graph, in their order; see `PrototypeHead.explain`."""

    log_probability: Tensor
    logit: Tensor
    path: Tensor
    evidence_prototype: Tensor
    evidence_similarity: Tensor
    evidence_weight: Tensor
    evidence_contribution: Tensor
    evidence_cell: Tensor
    evidence_map: Tensor
    similarity: Tensor
    cell: Tensor


def groups_of(taxonomy: Taxonomy, kind: Kind) -> tuple[Group, ...]:
    """Which nodes compete: siblings (Hase et al. 2019), or all leaves at once (Chen et al. 2019)."""
    return taxonomy.groups if kind == "hierarchical" else (taxonomy.leaf_group,)


class PrototypeHead(nn.Module):
    """Prototypes and last layers over a taxonomy.

    With the similarity `negative-distance`, `reference` [P] is added to it: 0 unless `speak_where_near` was called.
    With `zero`, what the similarity is at this squared distance is subtracted from it, so that a prototype farther than
    that speaks against its child. As published the logarithms are positive everywhere, so a child gains from every
    prototype that it has, whether that matches or not. Two random directions stand 2 apart.
    With `sphere`, which the similarity `cosine` implies, latent cells must come at unit length, as
    `PrototypeNetwork.latent` gives them.

    `prototypes` [P, D] are ordered by group and, within it, by child; `prototype_child` [P] is the node that each
    belongs to. `weight` [G, M, Q] is every group's bias-free last layer, padded; a prototype reaches only members
    of its own group. It starts at +1 own, −0.5 other (both papers).
    """

    prototype_child: Tensor
    prototype_group: Tensor
    prototype_slot: Tensor
    slot_prototype: Tensor
    member_node: Tensor
    node_member: Tensor
    node_group: Tensor
    weight_mask: Tensor
    own_mask: Tensor
    ancestors: Tensor
    leaf_node: Tensor
    leaf_path: Tensor
    leaves_below: Tensor
    temperature: Tensor
    centre: Tensor
    reference: Tensor

    def __init__(
        self,
        taxonomy: Taxonomy,
        prototype_child: list[int],
        dimensions: int,
        *,
        kind: Kind = "hierarchical",
        form: Similarity = "log1p",
        epsilon: float = 1e-4,
        sphere: bool = False,
        zero: float | None = None,
    ) -> None:
        super().__init__()
        self.zero = zero
        self.shift = 0.0 if zero is None else -similarity_at(zero, form, epsilon)
        self.sphere = sphere or form == "cosine"
        self.taxonomy = taxonomy
        self.kind = kind
        self.form: Similarity = form
        self.epsilon = epsilon
        groups = groups_of(taxonomy, kind)
        nodes, depth = len(taxonomy.nodes), taxonomy.depth
        group_of = {node: number for number, group in enumerate(groups) for node in group.children}
        member_of = {node: place for group in groups for place, node in enumerate(group.children)}
        children = np.array(prototype_child, dtype=np.int64)
        owners = np.array([group_of[child] for child in prototype_child], dtype=np.int64)
        sizes = np.bincount(owners, minlength=len(groups))
        members, slots = max(len(group.children) for group in groups), int(sizes.max())
        order = np.argsort(owners, kind="stable")
        slot = np.empty_like(owners)
        slot[order] = np.concatenate([np.arange(size) for size in sizes])
        count = len(children)

        slot_prototype = np.full((len(groups), slots), count, dtype=np.int64)
        slot_prototype[owners, slot] = np.arange(count)
        member_node = np.full((len(groups), members), nodes, dtype=np.int64)
        for number, group in enumerate(groups):
            member_node[number, : len(group.children)] = group.children
        node_member = np.array([member_of.get(node, 0) for node in range(nodes + 1)], dtype=np.int64)
        node_group = np.array([group_of.get(node, len(groups)) for node in range(nodes + 1)], dtype=np.int64)
        valid = (member_node < nodes)[:, :, None] & (slot_prototype < count)[:, None, :]
        child_of_slot = np.append(children, -2)[slot_prototype]
        own = member_node[:, :, None] == child_of_slot[:, None, :]
        ancestors = np.where(taxonomy.path_at_level < 0, nodes, taxonomy.path_at_level)

        for name, table in {
            "prototype_child": children,
            "prototype_group": owners,
            "prototype_slot": slot,
            "slot_prototype": slot_prototype,
            "member_node": member_node,
            "node_member": node_member,
            "node_group": node_group,
            "weight_mask": valid,
            "own_mask": own & valid,
            "ancestors": ancestors,
            "leaf_node": np.array(taxonomy.leaves, dtype=np.int64),
            "leaf_path": taxonomy.path_at_level[list(taxonomy.leaves)],
            "leaves_below": taxonomy.leaves_below.astype(np.float32),
        }.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)
        self.register_buffer("temperature", torch.ones(len(groups)))
        self.register_buffer("centre", torch.zeros(dimensions))
        if form == "negative-distance":
            self.register_buffer("reference", torch.zeros(count))
        self.prototypes = nn.Parameter(torch.rand(count, dimensions))
        self.weight = nn.Parameter(torch.zeros(len(groups), members, slots))
        self.depth = depth
        self.reset_weight()

    @property
    def top_k_limit(self) -> int:
        """The most evidence per level that a graph can return: the prototypes of the largest group."""
        return self.weight.shape[2]

    @torch.no_grad()
    def reset_weight(self, own: float = 1.0, other: float = -0.5) -> None:
        """Set the last layers to their published start.

        Where siblings have different numbers of prototypes, each prototype counts in inverse proportion, or the
        child with more of them would start ahead; not so where one that does not match adds nothing (`zero`).
        """
        if self.zero is not None:
            self.weight.copy_(torch.where(self.own_mask, own, other) * self.weight_mask)
            return
        owned = self.own_mask.sum(2).float()  # [G, M]
        fewest = torch.where(owned > 0, owned, torch.inf).amin(1)
        share = (self.own_mask * (fewest[:, None] / owned.clamp_min(1.0))[:, :, None]).sum(1)  # [G, Q]
        self.weight.copy_(torch.where(self.own_mask, own, other) * self.weight_mask * share[:, None, :])

    @torch.no_grad()
    def speak_where_near(self, typical: Tensor) -> None:
        """Give a last layer over sums of distances the form that people read, without changing a probability.

        A sum of −distances is evidence by absence: the prototypes of *other* classes add most to a logit, because the
        picture is far from them. Two freedoms turn that round. The mean over a group's members may be taken from every
        prototype's weights, for a softmax does not see it; and to every similarity a constant may be added, as long as
        the weights of every member times these `reference`s sum to 0. Of all such references those nearest to the
        `typical` distances [P] are taken, so that a prototype nearer than that speaks for its own class. With fewer
        prototypes than members there may be none but 0.
        """
        members = (self.member_node < len(self.taxonomy.nodes)).double()[:, :, None]
        centred = self.effective_weight().double()
        centred = (centred - (centred * members).sum(1, keepdim=True) / members.sum(1, keepdim=True)) * self.weight_mask
        reference = torch.zeros_like(self.reference, dtype=torch.float64)
        for group in range(centred.shape[0]):
            present = self.slot_prototype[group] < len(reference)
            weight, slots = centred[group][:, present], self.slot_prototype[group][present]
            wanted = typical.to(weight)[slots]
            reference[slots] = wanted - torch.linalg.pinv(weight, rtol=1e-9) @ (weight @ wanted)
        self.weight.copy_(centred)
        self.reference.copy_(reference)

    def effective_weight(self) -> Tensor:
        """[G, M, Q] the last layers, exactly zero where a group has no such member or prototype."""
        return self.weight * self.weight_mask

    # ---- distances -------------------------------------------------------------------------------------------

    def vectors(self) -> Tensor:
        """[P, D] the prototypes as cells are compared with them: at unit length on the sphere, else as they are."""
        return on_sphere(self.prototypes, 1) if self.sphere else self.prototypes

    def nearest_cells(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """distance [N, P] and cell int64 [N, P] of each prototype's best cell in `latent` [N, D, rows, columns].

        The best cell comes from one matrix product, ‖z‖² − 2zp + ‖p‖²; that loses about 4e-5 to cancellation, as
        much as the published ε, so the distance at that cell is then computed from the difference. While training,
        the product's own distance is used: gradients then cost two more products instead of a scatter.
        """
        cells = latent.flatten(2)
        # Distances do not change when both sides are shifted; smaller numbers lose less to cancellation.
        shifted = cells - self.centre[:, None]
        vectors = self.vectors()
        prototypes = vectors - self.centre
        closeness = 2.0 * torch.matmul(prototypes, shifted) - (shifted * shifted).sum(1, keepdim=True)
        # min(d) as max(−d): edge runtimes lack ReduceMin and ArgMin.
        closest, cell = closeness.max(dim=2)
        if self.training:
            return ((prototypes * prototypes).sum(1) - closest).clamp_min(0.0), cell
        first = torch.arange(latent.shape[0], device=latent.device)[:, None] * cells.shape[2]
        rows = cells.transpose(1, 2).reshape(-1, cells.shape[1])
        matched = rows.index_select(0, (cell + first).reshape(-1)).reshape(latent.shape[0], -1, cells.shape[1])
        difference = matched - vectors
        return (difference * difference).sum(2), cell

    def similarity_of(self, distance: Tensor) -> Tensor:
        """The similarities of squared distances of any shape, before any prototype's own `reference`."""
        found = similarity(distance, self.form, self.epsilon)
        return found + self.shift if self.shift != 0.0 else found

    # ---- probabilities ---------------------------------------------------------------------------------------

    def slot_similarity(self, similarities: Tensor) -> Tensor:
        """[N, P] → [N, G, Q]: each group's own similarities, 0 in its padding."""
        padded = functional.pad(similarities, (0, 1))
        groups, slots = self.slot_prototype.shape
        return padded.index_select(1, self.slot_prototype.reshape(-1)).reshape(-1, groups, slots)

    def node_log_probability(self, group_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional log-probabilities [N, V] from `group_logits` [N, G, M].

        An only child's conditional is 1. Hierarchical: a node's probability is the product along its path. Flat:
        an inner node's is the sum over its leaves.
        """
        logits = group_logits / self.temperature[:, None]
        conditionals = torch.log_softmax(logits, dim=2).flatten(1)
        place = self.node_group * self.member_node.shape[1] + self.node_member
        conditional_and_none = functional.pad(conditionals, (0, self.member_node.shape[1])).index_select(1, place)
        conditional = conditional_and_none[:, :-1]
        if self.kind == "hierarchical":
            levels = conditional_and_none.index_select(1, self.ancestors.reshape(-1))
            return conditional, levels.reshape(-1, *self.ancestors.shape).sum(2)
        leaves = conditional.index_select(1, self.leaf_node)
        sums = torch.matmul(leaves.exp(), self.leaves_below.t()).clamp_min(1e-37).log()
        is_leaf = self.node_group[:-1] < self.weight.shape[0]
        return conditional, torch.where(is_leaf, conditional, sums)

    def forward(self, latent: Tensor) -> HeadOutput:
        """Everything training needs from `latent` [N, D, rows, columns]."""
        distance, cell = self.nearest_cells(latent)
        return self.classify(distance, cell)

    def classify(self, distance: Tensor, cell: Tensor) -> HeadOutput:
        """The rest of `forward`, from distances and cells [N, P]."""
        similarities = self.similarity_of(distance)
        if self.form == "negative-distance":
            similarities = similarities + self.reference
        slots = self.slot_similarity(similarities)
        products = torch.matmul(slots.transpose(0, 1), self.effective_weight().transpose(1, 2)).transpose(0, 1)
        present = self.member_node < len(self.taxonomy.nodes)
        group_logits = products.masked_fill(~present, NEGATIVE)
        conditional, log_probability = self.node_log_probability(group_logits)
        return HeadOutput(distance, similarities, cell, group_logits, conditional, log_probability)

    # ---- evidence --------------------------------------------------------------------------------------------

    def explain(self, latent: Tensor, top_k: int) -> Explanation:
        """The graph's outputs for `latent` [N, D, rows, columns], with the `top_k` evidence of every level.

        log_probability, logit float [N, V] (logit 0 where a node has no head); path int64 [N, L] (−1 below the
        leaf); evidence_prototype, evidence_cell int64 and evidence_similarity, _weight, _contribution float
        [N, L, top_k] by falling contribution (−1 and 0 where there is none); evidence_map [N, L, top_k, rows,
        columns], the similarity at every cell; similarity, cell [N, P].
        """
        output = self(latent)
        output = cast(HeadOutput, output)
        groups, members, _ = self.weight.shape
        leaf = output.log_probability.index_select(1, self.leaf_node).argmax(1)
        path = self.leaf_path.index_select(0, leaf)
        levels = path.shape[1]
        node = torch.where(path < 0, len(self.taxonomy.nodes), path).reshape(-1)

        present = functional.pad(output.group_logits.flatten(1), (0, members))
        place = self.node_group * members + self.node_member
        logit = present.index_select(1, place)[:, :-1]

        # One row of last-layer weights and one row of similarities per picture and level; the row past the last
        # group stands for "no head" and is empty.
        group = self.node_group.index_select(0, node)
        weights = functional.pad(self.effective_weight().flatten(0, 1), (0, 0, 0, members))
        weight = weights.index_select(0, group * members + self.node_member.index_select(0, node))
        slot_similarities = functional.pad(self.slot_similarity(output.similarity), (0, 0, 0, 1)).flatten(0, 1)
        picture = torch.arange(latent.shape[0], device=latent.device)[:, None].expand(-1, levels).reshape(-1)
        similarities = slot_similarities.index_select(0, picture * (groups + 1) + group)
        none = self.prototypes.shape[0]
        identity = functional.pad(self.slot_prototype, (0, 0, 0, 1), value=none).index_select(0, group)
        contributions = torch.where(identity < none, weight * similarities, NEGATIVE)
        contribution, slot = contributions.topk(top_k, dim=1)
        prototype = identity.gather(1, slot)
        found = prototype < none
        chosen = torch.where(found, prototype, 0)
        per_picture = chosen.reshape(-1, levels * top_k)
        cell = output.cell.gather(1, per_picture).reshape(-1, top_k)

        # The maps of the few prototypes shown are computed from differences, so they agree with the similarity
        # at the best cell.
        vectors = self.vectors().index_select(0, chosen.reshape(-1)).reshape(-1, levels * top_k, latent.shape[1], 1)
        difference = latent.flatten(2)[:, None] - vectors
        maps = self.similarity_of((difference * difference).sum(2))
        if self.form == "negative-distance":
            maps = maps + self.reference.index_select(0, chosen.reshape(-1)).reshape(-1, levels * top_k, 1)
        maps = torch.where(found.reshape(-1, levels * top_k, 1), maps, 0.0)

        shape = (-1, levels, top_k)
        return Explanation(
            log_probability=output.log_probability,
            logit=logit,
            path=path,
            evidence_prototype=torch.where(found, prototype, -1).reshape(shape),
            evidence_similarity=torch.where(found, similarities.gather(1, slot), 0.0).reshape(shape),
            evidence_weight=torch.where(found, weight.gather(1, slot), 0.0).reshape(shape),
            evidence_contribution=torch.where(found, contribution, 0.0).reshape(shape),
            evidence_cell=torch.where(found, cell, -1).reshape(shape),
            evidence_map=maps.reshape(-1, levels, top_k, latent.shape[2], latent.shape[3]),
            similarity=output.similarity,
            cell=output.cell,
        )


def prototype_children(taxonomy: Taxonomy, kind: Kind, per_child: int, inner_factor: int = 1) -> list[int]:
    """The node that each prototype belongs to, in the head's order: `per_child` for every member of every group.

    An inner node stands for more varied pictures than a leaf: it gets ⌈√leaves below⌉ times as many, at most
    `inner_factor` times (1: as published).
    """
    below = taxonomy.leaves_below.sum(axis=1)
    return [
        node
        for group in groups_of(taxonomy, kind)
        for node in group.children
        for _ in range(per_child * min(inner_factor, math.ceil(math.sqrt(below[node]))))
    ]
