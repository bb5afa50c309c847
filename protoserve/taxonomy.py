"""The class tree: its nodes, levels, paths and groups of siblings.

A node's identity is its path (`"Fruit/Apple"`), so names may repeat in different branches. The root itself is not a
node. Level 1 holds the root's children; leaves may be at different levels. Nodes are numbered breadth first, so that
the children of one parent are consecutive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import TaxonomyError, nearest
from protoserve.names import is_plain

ROOT = -1
# The kinds of network, which differ in the nodes that compete with each other.
Kind: TypeAlias = Literal["hierarchical", "flat", "linear", "autoencoder"]


@dataclass(frozen=True)
class Group:
    """Two or more nodes that compete in one softmax: the children of `parent`, a node index or `ROOT`."""

    parent: int
    children: tuple[int, ...]


@dataclass(frozen=True)
class Taxonomy:
    """A class tree as an immutable table.

    `nodes` are paths from level 1 down, breadth first. `folders[i]` is the image folder of leaf `i` (in the order of
    `leaves`), relative to the folder of a split.

    >>> tree = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Garlic"])
    >>> tree.names
    ('Fruit', 'Garlic', 'Fruit/Apple', 'Fruit/Lemon', 'Fruit/Apple/Gala', 'Fruit/Apple/Fuji')
    >>> [tree.names[leaf] for leaf in tree.leaves], tree.depth
    (['Garlic', 'Fruit/Lemon', 'Fruit/Apple/Gala', 'Fruit/Apple/Fuji'], 3)
    """

    nodes: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]

    # ---- construction ---------------------------------------------------------------------------------------

    @classmethod
    def from_paths(cls, paths: Iterable[str | Sequence[str]], folders: Sequence[str] | None = None) -> Taxonomy:
        """Make the tree whose leaves are `paths` (`"Fruit/Apple"` or `("Fruit", "Apple")`); siblings keep their order.

        `folders[i]` is the image folder of `paths[i]`, by default the path itself. Raises TaxonomyError for fewer than
        two leaves, an empty or invalid name, a duplicate leaf, or a leaf that is also the parent of another.
        """
        leaves = [tuple(path.split("/")) if isinstance(path, str) else tuple(path) for path in paths]
        if not leaves:
            raise TaxonomyError("the taxonomy is empty: it needs at least two leaves")
        seen: set[tuple[str, ...]] = set()
        for leaf in leaves:
            _check_names(leaf)
            if leaf in seen:
                raise TaxonomyError(f"duplicate siblings: {'/'.join(leaf)!r} is given twice; name each leaf once")
            seen.add(leaf)
        inner = {leaf[:depth] for leaf in leaves for depth in range(1, len(leaf))}
        if both := sorted(inner & seen):
            raise TaxonomyError(
                f"{'/'.join(both[0])!r} is a leaf and also the parent of others; "
                "give its own images a child of their own (for example 'other')"
            )
        if len(leaves) < 2:
            raise TaxonomyError(f"the taxonomy has one leaf, {'/'.join(leaves[0])!r}: nothing to tell apart")
        # A dict keeps insertion order, so siblings keep the order of `paths`.
        children: dict[tuple[str, ...], dict[tuple[str, ...], None]] = {}
        for leaf in leaves:
            for depth in range(1, len(leaf) + 1):
                children.setdefault(leaf[: depth - 1], {})[leaf[:depth]] = None
        nodes: list[tuple[str, ...]] = []
        frontier: list[tuple[str, ...]] = [()]
        while frontier:
            frontier = [child for parent in frontier for child in children.get(parent, {})]
            nodes.extend(frontier)
        folder_of = dict(zip(leaves, folders or ["/".join(leaf) for leaf in leaves], strict=True))
        return cls(tuple(nodes), tuple(folder_of[node] for node in nodes if node in seen))

    def without(self, leaves: Iterable[str]) -> Taxonomy:
        """Return the tree without the given leaves (`"Fruit/Apple/Gala"`) and without parents that lose all leaves.

        A parent that keeps one child stays; that child's conditional probability is then 1. Raises TaxonomyError for a
        name that is not a leaf, or if fewer than two leaves remain.
        """
        left_out = dict.fromkeys(leaves)
        names = [self.names[leaf] for leaf in self.leaves]
        for name in left_out:
            if name in self.index and name not in names:
                below = [self.names[self.leaves[leaf]] for leaf in np.flatnonzero(self.leaves_below[self.index[name]])]
                raise TaxonomyError(
                    f"{name!r} is not a leaf to leave out; name the leaves below it: {', '.join(below)}"
                )
            if name not in names:
                raise TaxonomyError(f"the taxonomy has no leaf {name!r} to leave out{nearest(name, names)}")
        kept = [leaf for leaf, name in enumerate(names) if name not in left_out]
        # `from_paths` needs depth-first order to keep the order of siblings.
        kept.sort(key=lambda leaf: self.path_at_level[self.leaves[leaf]].tolist())
        if len(kept) < 2:
            raise TaxonomyError(f"leaving out {len(left_out)} leaves keeps only {len(kept)}; leave out fewer")
        return Taxonomy.from_paths([names[leaf] for leaf in kept], [self.folders[leaf] for leaf in kept])

    # ---- its shape -------------------------------------------------------------------------------------------

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every node's identity, its path joined with `/`."""
        return tuple("/".join(node) for node in self.nodes)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """A mapping from a node's identity to its index."""
        return {name: node for node, name in enumerate(self.names)}

    @cached_property
    def depth(self) -> int:
        """The deepest level."""
        return max(len(node) for node in self.nodes)

    @cached_property
    def parent(self) -> NDArray[np.int64]:
        """The parent of each node, int64 [nodes]; `ROOT` at level 1."""
        index_of = {path: node for node, path in enumerate(self.nodes)} | {(): ROOT}
        return np.array([index_of[path[:-1]] for path in self.nodes], dtype=np.int64)

    @cached_property
    def children(self) -> tuple[range, ...]:
        """The children of every node; a leaf has none."""
        return tuple(self.children_of(node) for node in range(len(self.nodes)))

    def children_of(self, parent: int) -> range:
        """Return the children of a node or of `ROOT`; they are consecutive."""
        children = np.flatnonzero(self.parent == parent)
        return range(int(children[0]), int(children[-1]) + 1) if len(children) else range(0)

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """The leaves' node indices, ascending."""
        parents = set(self.parent.tolist())
        return tuple(node for node in range(len(self.nodes)) if node not in parents)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every set of two or more siblings, in node order; an only child competes with no other node."""
        parents = dict.fromkeys(self.parent.tolist())
        groups = (Group(parent, tuple(self.children_of(parent))) for parent in parents)
        return tuple(group for group in groups if len(group.children) > 1)

    @cached_property
    def leaf_group(self) -> Group:
        """All leaves as one group, as in a flat model (ProtoPNet, Chen et al. 2019)."""
        return Group(ROOT, self.leaves)

    @cached_property
    def path_at_level(self) -> NDArray[np.int64]:
        """Each node's ancestor, or the node itself, at level k + 1: int64 [nodes, depth], −1 below the node's level."""
        table = np.full((len(self.nodes), self.depth), -1, dtype=np.int64)
        for node, path in enumerate(self.nodes):
            if len(path) > 1:
                table[node] = table[self.parent[node]]
            table[node, len(path) - 1] = node
        return table

    @cached_property
    def leaf_nodes(self) -> NDArray[np.int64]:
        """The leaves' node numbers as an array: int64 [leaves]."""
        return np.array(self.leaves, dtype=np.int64)

    @cached_property
    def level_of_leaf(self) -> NDArray[np.int64]:
        """Each leaf's ancestor at level k + 1, or the leaf itself if its depth is less: int64 [leaves, depth]."""
        table = self.path_at_level[list(self.leaves)]
        return np.where(table < 0, np.array(self.leaves)[:, None], table)

    @cached_property
    def leaves_below(self) -> NDArray[np.bool_]:
        """Whether the leaf is the node or lies below it: bool [nodes, leaves]."""
        # The extra row takes the −1 of levels below the leaf. The loop saves memory: a comparison of all levels at once
        # takes `depth` times as much.
        below = np.zeros((len(self.nodes) + 1, len(self.leaves)), dtype=np.bool_)
        for level in self.path_at_level[list(self.leaves)].T:
            below[level, np.arange(len(self.leaves))] = True
        return below[:-1]

    @cached_property
    def leaf_counts(self) -> NDArray[np.int64]:
        """The number of leaves that are the node or lie below it: int64 [nodes]."""
        ancestors = self.path_at_level[list(self.leaves)]
        return np.bincount(ancestors[ancestors >= 0], minlength=len(self.nodes)).astype(np.int64)

    # ---- labels that stop at an inner node --------------------------------------------------------------------

    @cached_property
    def label_nodes(self) -> NDArray[np.int64]:
        """What a picture can be labelled with: the leaves, in the order of `leaves`, then the inner nodes, ascending:
        int64 [labels]."""
        leaves = set(self.leaves)
        inner = [node for node in range(len(self.nodes)) if node not in leaves]
        return np.concatenate([self.leaf_nodes, np.array(inner, dtype=np.int64)])

    @cached_property
    def labels_below(self) -> NDArray[np.bool_]:
        """Whether a label says that a picture is of the node or of one below it: bool [nodes, labels].

        The first columns are `leaves_below`.
        """
        # The extra row takes the −1 of levels below the label.
        below = np.zeros((len(self.nodes) + 1, len(self.label_nodes)), dtype=np.bool_)
        for level in self.path_at_level[self.label_nodes].T:
            below[level, np.arange(len(self.label_nodes))] = True
        return below[:-1]

    @cached_property
    def leaves_of_label(self) -> NDArray[np.bool_]:
        """The leaves that a picture of each label may have: bool [labels, leaves]."""
        return self.leaves_below[self.label_nodes]

    # ---- as JSON ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Convert the tree to JSON-ready data; `from_dict` reads it back."""
        return {"nodes": [list(node) for node in self.nodes], "folders": list(self.folders)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Taxonomy:
        """Read the data of `to_dict`; raises TaxonomyError for anything else."""
        try:
            nodes = tuple(tuple(str(name) for name in node) for node in content["nodes"])
            folders = tuple(str(folder) for folder in content["folders"])
        except (KeyError, TypeError) as error:
            raise TaxonomyError(f"not a stored taxonomy ({error!r}); write it with to_dict()") from error
        # A tree rebuilt from the leaves, in depth-first order, must be equal to the stored one.
        index_of = {path: node for node, path in enumerate(nodes)}
        inner = {path[:-1] for path in nodes}
        leaves = [path for path in nodes if path not in inner]
        leaves.sort(key=lambda leaf: [index_of.get(leaf[:depth], -1) for depth in range(1, len(leaf) + 1)])
        rebuilt = cls.from_paths(leaves)
        if rebuilt.nodes != nodes or len(folders) != len(leaves):
            raise TaxonomyError("not a stored taxonomy: its nodes do not form a tree")
        return cls(nodes, folders)


def competing_groups(taxonomy: Taxonomy, kind: Kind) -> tuple[Group, ...]:
    """Return the groups of nodes that share a softmax: siblings in a hierarchical network (Hase et al. 2019), all
    leaves in every other kind (Chen et al. 2019)."""
    return taxonomy.groups if kind == "hierarchical" else (taxonomy.leaf_group,)


def check_name(name: str, place: str) -> None:
    """Raise TaxonomyError, which names the `place`, for a text that can't be the name of a class."""
    if not name or name != name.strip() or name in {".", ".."} or "/" in name or "\\" in name or not is_plain(name):
        raise TaxonomyError(
            f"{name!r} in {place} is not a class name; a name is not empty, '.' or '..', and has no '/' or '\\', no "
            "line breaks or control characters, and no spaces at its ends"
        )


def _check_names(path: tuple[str, ...]) -> None:
    for name in path:
        check_name(name, repr("/".join(path)))
