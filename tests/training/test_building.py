"""Which parts of a backbone learn, and how fast."""

import pytest

from protoserve.errors import InputError
from protoserve.networks.backbones import backbone
from training.features.building import block_of, learn_only, learning_groups, learning_parts


@pytest.fixture(scope="module")
def mobile():
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


def test_each_block_learns_slower_than_the_next(mobile) -> None:
    groups = learning_groups(mobile.body, "features.16", 0.8, 0.5)
    # features.16, .17 and .18 learn; .18 is the last.
    assert [rate for _, rate in groups] == pytest.approx([0.8, 0.4, 0.2])
    features = mobile.body.get_submodule("features")
    for (parameters, _), block in zip(groups, (18, 17, 16), strict=True):
        expected = {id(parameter) for parameter in features.get_submodule(str(block)).parameters()}
        assert {id(parameter) for parameter in parameters} == expected


def test_without_decay_all_that_learns_is_one_group_and_nothing_else_learns(mobile) -> None:
    ((parameters, rate),) = learning_groups(mobile.body, "features.16", 0.8, 1.0)
    assert rate == 0.8
    learn_only(mobile, [(parameters, rate)])
    learning = {name.split(".")[2] for name, parameter in mobile.named_parameters() if parameter.requires_grad}
    assert learning == {"16", "17", "18"}
    ((everything, _),) = learning_groups(mobile.body, None, 1.0, 1.0)
    assert len(everything) == len(list(mobile.parameters()))


def test_parameters_that_blocks_own_beside_their_modules_learn_too() -> None:
    # ConvNeXt scales each block by a parameter of its own.
    body = backbone("convnext_tiny").body
    scales = {id(parameter) for name, parameter in body.named_parameters() if name.endswith("layer_scale")}
    (parameters, _), *_ = learning_groups(body, "features.7", 1.0, 0.5)
    last = {id(parameter) for parameter in body.get_submodule("features.7").parameters()}
    assert {id(parameter) for parameter in parameters} == last
    assert last & scales


def test_an_unknown_part_is_named_with_those_there_are(mobile) -> None:
    with pytest.raises(InputError, match=r"no part 'features.41'; did you mean 'features.4'.*features.18"):
        learning_parts(mobile.body, "features.41")
