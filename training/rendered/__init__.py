"""The default data set, `rendered`: drawn pictures whose classes differ only in their parts."""

from training.rendered.classes import DECISIVE_PARTS, PARTS, leaf_paths, part_index
from training.rendered.folder import FORMAT_VERSION, count_pictures, render_dataset, split_counts
from training.rendered.interventions import count_figures, render_interventions
from training.rendered.picture import Picture, draw_picture

__all__ = [
    "DECISIVE_PARTS",
    "FORMAT_VERSION",
    "PARTS",
    "Picture",
    "count_figures",
    "count_pictures",
    "draw_picture",
    "leaf_paths",
    "part_index",
    "render_dataset",
    "render_interventions",
    "split_counts",
]
