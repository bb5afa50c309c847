"""The resize inside the graph against Pillow's, which training and serving use."""

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export.network_answers import NetworkAnswers
from export.resizing import GREY_LEVELS, Fit, check_fitted
from protoserve.errors import ParityError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.network import PrototypeNetwork

RULES = [("stretch", 1.0), ("crop", 1.0), ("crop", 0.7), ("crop", 0.875), ("pad", 1.0)]
# The rule of `tiny_run`.
RULE = InputRule(height=64, width=96, resize="stretch")
SHAPES = [(348, 464), (464, 348), (64, 96), (37, 501), (2, 3), (900, 1200), (50, 31)]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth, as photographs are, and as strong in contrast as 8 bits allow."""
    noise = np.random.default_rng(height).integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("resize", "share"), RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_picture_comes_out_as_from_the_host(
    resize: Literal["stretch", "crop", "pad"], share: float, shape: tuple[int, int]
) -> None:
    rule = InputRule(height=64, width=96, resize=resize, share=share)
    given = picture(*shape)
    expected = fit(decode(given), rule).array.astype(int)
    found = Fit(rule)(torch.from_numpy(given)[None])
    assert found.dtype == torch.uint8
    difference = np.abs(found[0].numpy().astype(int) - expected)
    assert difference.max() <= GREY_LEVELS
    # Enlarged by a simple fraction, many sums lie just between two grey levels.
    assert (difference > 0).mean() < (0.1 if shape == (64, 96) else 0.03)


def test_a_picture_of_model_size_is_left_alone() -> None:
    rule = InputRule(height=64, width=96, resize="crop")
    given = torch.from_numpy(picture(64, 96))[None]
    assert torch.equal(Fit(rule)(given), given)


def test_sums_are_whole_numbers_that_float32_holds() -> None:
    """So the order of summation can't matter: the reference is the same sum in 64-bit integers."""
    rule = InputRule(height=16, width=16, resize="stretch")
    white = np.full((7001, 5003, 3), 255, dtype=np.uint8)
    assert (Fit(rule)(torch.from_numpy(white)[None]).numpy() == 255).all()


def test_an_inexact_resize_fails_the_parity_check(
    network: PrototypeNetwork, samples: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The gate compares with the host by the rule of the manifest; a graph made for another rule shows every picture
    # shifted.
    monkeypatch.setattr("export.resizing.Fit", lambda rule: Fit(rule.model_copy(update={"resize": "crop"})))
    with pytest.raises(ParityError, match="grey levels"):
        check_fitted(NetworkAnswers(network, 3), lambda pictures: {}, RULE, samples[:2])


def test_a_runtime_s_own_pixels_are_compared_with_the_host_s(network: PrototypeNetwork) -> None:
    """Three grey levels are one too many, whatever the runtime then answers on them."""
    grey = np.full((1, 64, 96, 3), 100, dtype=np.uint8)
    module = Fit(RULE)

    def brighter(given: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(module(torch.from_numpy(given)).numpy() + np.uint8(3))

    with pytest.raises(ParityError, match="by 3 grey levels"):
        check_fitted(NetworkAnswers(network, 3), lambda pictures: {}, RULE, grey, fitter=brighter)
