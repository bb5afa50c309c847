"""The changes of a class tree: which classes are added, removed, renamed and merged, and the tree that results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError, TaxonomyError, nearest
from protoserve.names import normal
from protoserve.taxonomy import Taxonomy, check_name


@dataclass(frozen=True)
class Changes:
    """What to change. All nodes that exist are named as they are before the change.

    `added` maps new leaves to the folders of their pictures, `renamed` nodes to their new names, and `merged` new names
    to the siblings that become one. A new name is a whole path, such as `Fruit/Kiwi`.
    """

    added: Mapping[str, Path] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def only_names(self) -> bool:
        """Whether nothing but names changes."""
        return bool(self.renamed) and not (self.added or self.removed or self.merged)


@dataclass(frozen=True)
class ChangedTree:
    """The tree after the changes. `node_of` maps each node that stays to its new node, by index; merged nodes share
    one. `leaf_of` int64 [old leaves] are the new places in `taxonomy.leaves`, −1 for a removed leaf."""

    taxonomy: Taxonomy
    node_of: Mapping[int, int]
    leaf_of: NDArray[np.int64]


def read_changes(
    added: Sequence[str], removed: Sequence[str], renamed: Sequence[str], merged: Sequence[str]
) -> Changes:
    """Read `["Fruit/Kiwi=photos"]`, `["Fruit/Fig"]`, `["Fruit/Apple=Apples"]` and `["Fruit/Citrus=Lemon,Lime"]`.

    A new name, and the siblings of a merge, may leave out the path that they share with the node that they belong to.
    Raises InputError for anything of another form, for a node that is named twice, and if there is no change at all.
    """
    folders: dict[str, Path] = {}
    for text in added:
        node, folder = _pair(text, "", "NODE=FOLDER, for example Fruit/Kiwi=photos")
        if node in folders:
            raise InputError(f"{node}={folder}: the class {node!r} is given twice; put its pictures into one folder")
        folders[node] = Path(folder)
    names: dict[str, str] = {}
    for text in renamed:
        old, new = _pair(text, "--rename ", "OLD=NEW, for example Fruit/Kiwi=Kiwis")
        if old in names:
            raise InputError(f"--rename {text}: {old!r} is renamed twice; give it one name")
        names[old] = _beside(old, normal(new))
    unions: dict[str, tuple[str, ...]] = {}
    for text in merged:
        new, olds = _pair(text, "--merge ", "NEW=OLD,OLD, for example Fruit/Citrus=Fruit/Lemon,Fruit/Lime")
        parts = tuple(dict.fromkeys(_beside(new, normal(old)) for old in olds.split(",") if old))
        if len(parts) < 2:
            raise InputError(f"--merge {text}: names {len(parts)} class; name two siblings or more, or use --rename")
        if new in unions:
            raise InputError(f"--merge {text}: {new!r} is merged twice; name all its parts at once")
        unions[new] = parts
    gone = tuple(dict.fromkeys(normal(node) for node in removed))
    changes = Changes(folders, gone, names, unions)
    named = [*gone, *names, *(old for olds in unions.values() for old in olds)]
    if twice := sorted({node for node in named if named.count(node) > 1}):
        raise InputError(f"{twice[0]!r} is changed in two ways; say once what becomes of it")
    if not (named or folders):
        raise InputError("nothing to change; give NODE=FOLDER, --remove, --rename or --merge")
    return changes


def changed_tree(taxonomy: Taxonomy, changes: Changes) -> ChangedTree:
    """Apply the changes to a tree; siblings keep their order, and new ones follow.

    The folder of a leaf stays that of its training pictures, whatever its new name; a merged leaf has that of its first
    part. Raises TaxonomyError for a node that does not exist, a new leaf that does, parts that are not siblings, and
    whatever `Taxonomy.from_paths` refuses.
    """
    label = _labels(taxonomy, changes)
    gone = {taxonomy.index[node] for node in changes.removed}
    folder_of = dict(zip(taxonomy.leaves, taxonomy.folders, strict=True))
    folders: dict[tuple[str, ...], str] = {}
    moved: dict[int, tuple[str, ...]] = {}
    ordered = sorted(taxonomy.leaves, key=lambda leaf: taxonomy.path_at_level[leaf].tolist())
    for leaf in ordered:
        path = [node for node in taxonomy.path_at_level[leaf].tolist() if node >= 0]
        if gone.intersection(path):
            continue
        new = tuple(label[node] for node in path)
        moved |= {node: new[: depth + 1] for depth, node in enumerate(path)}
        folders.setdefault(new, folder_of[leaf])
    old_names = {"/".join(path) for path in moved.values()}
    for node in changes.added:
        if node in old_names:
            raise TaxonomyError(
                f"{node!r} is a class already; add its pictures to the data set and train again, or give another name"
            )
        folders[tuple(node.split("/"))] = node
    changed = Taxonomy.from_paths(list(folders), list(folders.values()))
    node_of = {node: changed.index["/".join(path)] for node, path in moved.items()}
    place = {node: leaf for leaf, node in enumerate(changed.leaves)}
    leaf_of = np.array([place[node_of[leaf]] if leaf in node_of else -1 for leaf in taxonomy.leaves], dtype=np.int64)
    return ChangedTree(changed, node_of, leaf_of)


def _labels(taxonomy: Taxonomy, changes: Changes) -> list[str]:
    """The last name of every node after renaming and merging."""
    named = [*changes.removed, *changes.renamed, *(old for olds in changes.merged.values() for old in olds)]
    for node in named:
        if node not in taxonomy.index:
            raise TaxonomyError(f"the run has no class {node!r}{nearest(node, taxonomy.names)}")
    label = [node[-1] for node in taxonomy.nodes]
    pairs = [(old, new) for old, new in changes.renamed.items()]
    pairs += [(old, new) for new, olds in changes.merged.items() for old in olds]
    taken: dict[str, str] = {}
    for old, new in pairs:
        if _parent(old) != _parent(new):
            raise TaxonomyError(f"{new!r} and {old!r} have other parents; a class keeps its parent")
        check_name(new.rpartition("/")[2], repr(new))
        label[taxonomy.index[old]] = new.rpartition("/")[2]
        taken[old] = new
    for new, olds in changes.merged.items():
        kinds = {taxonomy.index[old] in taxonomy.leaves for old in olds}
        if len(kinds) > 1:
            raise TaxonomyError(f"{', '.join(olds)}: a leaf and a class with classes below it can't become {new!r}")
    for old, new in pairs:
        mine = changes.merged.get(new, (old,))
        others = [node for node in taxonomy.names if taken.get(node, node) == new and node not in mine]
        if [node for node in others if node not in changes.removed]:
            raise TaxonomyError(f"{new!r} is a class already; merge them with --merge {new}={others[0]},{old}")
    return label


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left or not right:
        raise InputError(f"{option}{text}: write {form}")
    return normal(left.strip("/")), right


def _beside(node: str, name: str) -> str:
    """A sibling of `node`: `name` as it is, or below the parent of `node` if it is a single name."""
    return name if "/" in name or "/" not in node else f"{_parent(node)}/{name}"


def _parent(node: str) -> str:
    return node.rpartition("/")[0]
