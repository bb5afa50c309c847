"""The quick path: answers from a bundle's routed graph, which scores only the branches of the taxonomy that can win.

Most requests ask for the predicted path, its evidence and the best alternatives. A routed graph computes these, and
says for each picture whether they are certain. Everything else comes from the full graph: pictures for which they are
not, and requests about nodes anywhere (`contrast`, `without`, restrictions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import Bundle
from protoserve.graph_signature import OUTPUT_NAMES, SEARCH_OUTPUT_NAMES, SEARCH_OUTPUTS, RoutedSearch
from protoserve.inference.engine import PICTURE, Outputs, check_values, open_session, run_session
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.last_layers import HostEvidence

Search: TypeAlias = RoutedSearch[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]

TARGET: Final = "onnx-routed"
# An alternative must be more probable than everything that was not scored by at least this difference of natural
# logarithms: the two graphs differ by rounding.
MARGIN: Final = 1e-4
_ALL_SCORED: Final = -1e29


class QuickPath:
    """A bundle's routed graph, loaded once, on the CPU; made by `open_quick_path`.

    Several threads may use it at the same time.
    """

    def __init__(self, session: Any, table: EvidenceTable, evidence: HostEvidence) -> None:
        self._session = session
        self._table = table
        self._nodes, self._prototypes = len(table.names), len(table.prototypes)
        self._group_of = evidence.group_of
        self._groups = [
            (np.array(group.children, dtype=np.int64), layer)
            for group, layer in zip(evidence.table.groups, evidence.members[0].groups, strict=True)
        ]

    def run(self, images: NDArray[np.uint8], *, seconds: float | None = None) -> Search:
        """Run the routed graph on uint8 RGB images [N, height, width, 3] at model size, N ≥ 1.

        Raises DeviceError if it fails, or has not ended after `seconds`.
        """
        arrays = run_session(self._session, SEARCH_OUTPUT_NAMES, images, seconds, "cpu")
        return RoutedSearch(**dict(zip(SEARCH_OUTPUT_NAMES, arrays, strict=True)))

    def probabilities(self, found: Search) -> NDArray[np.float32]:
        """Return the log-probabilities of all nodes, float32 [images, nodes]; −∞ for those that were not scored."""
        whole = np.full((len(found.path), self._nodes + 1), -np.inf, dtype=np.float32)
        np.put_along_axis(whole, found.scored_node, found.scored_log_probability, axis=1)
        # Padding went into the last column.
        return np.ascontiguousarray(whole[:, : self._nodes])

    def certain(
        self, found: Search, log_probability: NDArray[np.float32], alternatives: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Return whether the alternatives of each image are certain, bool [images]: as many per level as `alternatives`
        says for it, besides the predicted node. `log_probability` is that of `probabilities`."""
        certain = np.ones(len(found.path), dtype=np.bool_)
        wanted = np.array(alternatives, dtype=np.int64)
        for level, nodes in enumerate(self._table.levels):
            bound, predicted = found.unscored_bound[:, level], found.path[:, level]
            asked = np.minimum(wanted, len(nodes) - 1)
            images = np.flatnonzero((bound > _ALL_SCORED) & (predicted >= 0) & (asked > 0))
            if not len(images):
                continue
            others = log_probability[images, nodes.start : nodes.stop]
            others[np.arange(len(images)), predicted[images] - nodes.start] = -np.inf
            least = np.sort(others, axis=1)[np.arange(len(images)), -asked[images]]
            certain[images] &= least > bound[images] + MARGIN
        return certain

    def outputs(self, found: Search, log_probability: NDArray[np.float32]) -> Outputs:
        """Convert to the outputs of the full graph, for pictures whose certificate holds.

        Beside the path and its siblings, logits and similarities are 0; cells are those of the evidence alone.
        """
        count = len(found.path)
        logit = np.zeros((count, self._nodes), dtype=np.float32)
        similarity = np.zeros((count, self._prototypes), dtype=np.float32)
        cell = np.full((count, self._prototypes), -1, dtype=np.int64)
        images, levels = np.nonzero(found.path >= 0)
        for image, level, node in zip(
            images.tolist(), levels.tolist(), found.path[images, levels].tolist(), strict=True
        ):
            group = self._group_of[node]
            if group >= 0:
                children, layer = self._groups[group]
                own = found.path_similarity[image, level, : len(layer.prototypes)]
                similarity[image, layer.prototypes] = own
                logit[image, children] = layer.weight @ own.astype(np.float64)
                logit[image, node] = found.path_logit[image, level]
        for kind in ("evidence", "against"):
            prototype = getattr(found, f"{kind}_prototype")
            ranks = np.nonzero(prototype >= 0)
            cell[ranks[0], prototype[ranks]] = getattr(found, f"{kind}_cell")[ranks]
        known: dict[str, NDArray[Any]] = {
            "log_probability": log_probability,
            "logit": logit,
            "similarity": similarity,
            "cell": cell,
        }
        return Outputs(**{name: known[name] if name in known else getattr(found, name) for name in OUTPUT_NAMES})


def open_quick_path(bundle: Model, table: EvidenceTable, device: str, threads: int | None = None) -> QuickPath | None:
    """Open a bundle's routed graph; `threads` limits the CPU threads of one call.

    None where the full graph answers alone: on a GPU, in an ensemble, in a bundle without a routed graph, and where
    that is of an older version, takes one batch size or resizes pictures itself. Raises BundleError for a damaged file.
    """
    if device != "cpu" or not isinstance(bundle, Bundle) or TARGET not in bundle.manifest.files:
        return None
    if not bundle.manifest.graph.centred or table.host_evidence is None:
        return None
    file, rule = bundle.file(TARGET), bundle.input
    session = open_session(file, threads)
    [picture] = session.get_inputs()
    listed = {output.name for output in session.get_outputs()}
    takes_any_batch = not isinstance(picture.shape[0], int) and picture.shape[1:] == [rule.height, rule.width, 3]
    if not takes_any_batch or not set(SEARCH_OUTPUT_NAMES) <= listed:
        return None
    graph = bundle.manifest.graph
    sizes = {
        "levels": bundle.taxonomy.depth,
        "evidence": graph.top_k,
        "rows": graph.rows,
        "columns": graph.columns,
    }
    check_values([picture], (PICTURE,), {}, file)
    check_values(session.get_outputs(), SEARCH_OUTPUTS, sizes, file)
    return QuickPath(session, table, table.host_evidence)
