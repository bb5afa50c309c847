"""The statistics of the colours that pictures are normalised with."""

from __future__ import annotations

from typing import Final, NamedTuple


class Statistics(NamedTuple):
    """Mean and standard deviation of red, green and blue, each in [0, 1]."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


# Those of the ImageNet pictures that torchvision's weights, and most others, were trained with.
IMAGENET: Final = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
