"""Half precision and compilation change a learning backbone's maps by no more than their rounding."""

import os

import pytest
import torch
from torch import nn

from protoserve.errors import DeviceError
from training.features import precision
from training.features.precision import Learning, compiles, half_precision, learning_forward
from training.sections.network import Precision

CPU = torch.device("cpu")


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_cpu_computes_in_half_precision_only_on_request(given: Precision, expected: torch.dtype | None) -> None:
    assert half_precision(given, CPU) is expected


# bfloat16 keeps 8 bits, float16 11.
@pytest.mark.parametrize(("given", "tolerance"), [("float32", 1e-6), ("bfloat16", 3e-2), ("float16", 4e-3)])
def test_half_precision_stays_within_its_rounding_and_gives_full_gradients(
    module: nn.Module, given: Precision, tolerance: float
) -> None:
    pictures = torch.randn(2, 3, 12, 12)
    expected = module(pictures)
    found = learning_forward(module, Learning(precision=given), CPU)(pictures)
    assert found.dtype == torch.float32
    assert ((found - expected).norm() / expected.norm()).item() <= tolerance
    gradients = []
    for maps in (expected, found):
        module.zero_grad()
        maps.square().mean().backward()
        gradient = module.get_parameter("0.weight").grad
        assert gradient is not None
        gradients.append(gradient.clone())
    assert gradients[1].dtype == torch.float32
    assert ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item() <= 3 * tolerance


def test_compiling_is_left_to_gpus_unless_asked_for() -> None:
    assert not compiles("auto", 10**12, CPU)
    assert not compiles(False, 10, CPU)


def test_what_compiling_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeviceError, match=r"compile: true: there is no C\+\+ compiler.*set compile to false or auto"):
        compiles(True, 10, CPU)


@pytest.mark.slow
@pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="compiles for half a minute: make test-faults")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_backbone_gives_the_same_maps(module: nn.Module) -> None:
    if missing := precision._missing_to_compile(CPU):
        pytest.skip(missing)
    pictures = torch.randn(2, 3, 12, 12)
    found = learning_forward(module, Learning(compile=True), CPU)(pictures)
    torch.testing.assert_close(found, module(pictures), rtol=1e-5, atol=1e-5)
