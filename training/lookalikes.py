"""Images that look alike, such as shots of one shelf, kept together when a data set is cut into parts.

Cut at random or by name, the parts know each other: what was learned from one scores on another as on itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 6


def parts_of_look_alikes(
    features: NDArray[np.floating[Any]], leaves: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """int64 [images] in [0, `count`): into which part each image falls, for mean `features` [images, width] at unit
    length and `leaves` [images].

    Groups are clusters (Ward's) of one leaf's images, about one for every six, and at least one for every part where
    there are so many images. The largest go first, each into the part that has the fewest of that leaf.
    """
    from sklearn.cluster import AgglomerativeClustering

    part = np.zeros(len(leaves), dtype=np.int64)
    for leaf in np.unique(leaves):
        numbers = np.flatnonzero(leaves == leaf)
        clusters = min(len(numbers), max(count, len(numbers) // GROUP))
        groups = np.zeros(len(numbers), dtype=np.int64)
        if clusters > 1:
            groups = AgglomerativeClustering(clusters).fit_predict(features[numbers])
        filled = np.zeros(count, dtype=np.int64)
        for group in np.argsort(-np.bincount(groups), kind="stable"):
            # Leaves begin with different parts, or the first would get every largest group.
            chosen = (int(leaf) + int(np.argmin(np.roll(filled, -int(leaf) % count)))) % count
            part[numbers[groups == group]] = chosen
            filled[chosen] += np.count_nonzero(groups == group)
    return part
