"""What the sections of the network refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.sections.network import AutoencoderConfig, ModelConfig


@pytest.mark.parametrize("smoothing", [2, 4])
def test_smoothing_is_odd(smoothing: int) -> None:
    assert ModelConfig(smoothing=smoothing + 1).smoothing == smoothing + 1
    with pytest.raises(ValidationError, match="smoothing must be odd"):
        ModelConfig(smoothing=smoothing)


def test_the_autoencoder_is_by_default_as_published() -> None:
    """Li et al. 2018: 15 prototypes, a code of 40 from pictures of 28 × 28, Adam at 2e-3, σ 4 and α 20 pixels."""
    default = AutoencoderConfig()
    assert (default.channels, default.prototypes, default.learning_rate) == ((32, 32, 32, 10), 15, 2e-3)
    weights = (default.cross_entropy, default.reconstruction, default.prototype_near_code, default.code_near_prototype)
    assert weights == (20, 1, 1, 1)
    assert (default.elastic.sigma, default.elastic.alpha) == (4, 20)


def test_an_encoder_has_layers() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        AutoencoderConfig(channels=())
