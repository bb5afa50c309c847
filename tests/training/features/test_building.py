"""Which parts of a backbone learn."""

import pytest

from protoserve.errors import InputError
from protoserve.networks.backbones import Backbone, backbone
from training.features.building import block_of, freeze_all_but, trainable_modules, trainable_parameters


@pytest.fixture(scope="module")
def mobile() -> Backbone:
    return backbone("mobilenet_v2")


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("features.14.conv.0.0", "features.14"),
        ("layer4.1.conv1", "layer4"),
        ("conv1.weight", "conv1"),
        ("encoder.layers.encoder_layer_3.mlp.0", "encoder.layers.encoder_layer_3"),
        ("encoder.ln.bias", "encoder.ln"),
        ("features.denseblock2.denselayer1", "features.denseblock2"),
    ],
)
def test_a_part_belongs_to_the_block_that_its_first_number_names(name: str, block: str) -> None:
    assert block_of(name) == block


def test_nothing_learns_before_the_named_part(mobile: Backbone) -> None:
    parameters = trainable_parameters(mobile.body, "features.16")
    freeze_all_but(mobile, parameters)
    names = {name.split(".")[2] for name, parameter in mobile.named_parameters() if parameter.requires_grad}
    assert names == {"16", "17", "18"}
    everything = trainable_parameters(mobile.body, None)
    assert [id(parameter) for parameter in everything] == [id(parameter) for parameter in mobile.parameters()]


def test_parameters_that_blocks_own_beside_their_modules_learn_too() -> None:
    # ConvNeXt scales each block by a parameter of its own.
    body = backbone("convnext_tiny").body
    scales = {id(parameter) for name, parameter in body.named_parameters() if name.endswith("layer_scale")}
    parameters = trainable_parameters(body, "features.7")
    last = {id(parameter) for parameter in body.get_submodule("features.7").parameters()}
    assert {id(parameter) for parameter in parameters} == last
    assert last & scales


def test_an_unknown_part_is_refused_with_a_list_of_the_parts(mobile: Backbone) -> None:
    with pytest.raises(InputError, match=r"no part 'features.41'; did you mean 'features.4'.*features.18"):
        trainable_modules(mobile.body, "features.41")
