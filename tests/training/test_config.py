from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protoserve.errors import InputError
from training.config import REMOVED, Config, parse_config, read_config, read_settings
from training.loop.plan import plan


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "a", "epoch": 3}, "unknown key 'epoch'"),
        ({"name": "a", "joint": {"epoch": 3}}, "unknown key 'joint.epoch'; did you mean 'epochs'"),
        ({"name": "a", "joint": {"epochs": -1}}, r"joint.epochs: .*greater than or equal to 0.*given: -1"),
        ({"name": "a", "joint": {"epochs": "many"}}, r"joint.epochs: .*given: 'many'"),
        ({"name": "a", "model": {"similarity": "l2"}}, r"model.similarity: .*'log1p'"),
        ({"name": "a", "model": 3}, r"model: .*given: 3"),
        ({"joint": {}}, "the key 'name' is missing"),
        ({"name": "a/b"}, "name: "),
        ({"name": "a", "precision": "half"}, r"precision: .*'auto', 'float32', 'bfloat16' or 'float16'.*given: 'half'"),
        ({"name": "a", "joint": {"patience": 0}}, r"joint.patience: .*given: 0"),
        ({"name": "a", "model": {"tile": 50}}, "model.tile: tiles of 50 pixels.*224 × 224.*; use tiles of 32 or 56"),
        ({"name": "a", "model": {"tile": 56, "tile_step": 32}}, "use tiles of 32 or 64 pixels, or a step of 28 or 42"),
        ({"name": "a", "model": {"tile": 56, "tile_step": 112}}, "one every 112.*a step of 56"),
        ({"name": "a", "model": {"tile_step": 16}}, "model: .*tile_step needs tile"),
        ({"name": "a", "model": {"tile": 56, "smoothing": 3}}, "smoothing: 3 mixes the features of neighbouring cells"),
        ({"name": "a", "model": {"tile": 56, "receptive_field": 19}}, "tile and receptive_field both limit"),
        ({"name": "a", "model": {"receptive_field": 19, "smoothing": 3}}, "leave out smoothing or receptive_field"),
        ({"name": "a", "model": {"receptive_field": 9, "kind": "autoencoder"}}, "receptive_field does not apply to an"),
        ({"name": "a", "model": {"tile": 56, "kind": "autoencoder"}}, "tile does not apply to an autoencoder"),
    ],
)
def test_a_bad_configuration_names_the_key_and_the_cure(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(content, "c.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml: no such configuration"):
        read_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", ["- a", "", "name: [", "\x00"])
def test_yaml_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        read_config(file)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\njoint:\n  epochs: 3\n  epochs: 4\n")
    with pytest.raises(InputError, match=r"c\.yaml, line 4: the key 'epochs' is given twice"):
        read_config(file)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\nseed: 1\nmodel: {backbone: resnet18}\n")
    config = read_config(file, {"seed": 7, "model.weights": None})
    assert (config.seed, config.model.weights, config.model.backbone) == (7, None, "resnet18")


def test_the_shipped_configurations_are_valid() -> None:
    from pathlib import Path

    import training

    files = sorted((Path(training.__file__).parent / "configs").glob("*.yaml"))
    assert {file.stem for file in files} >= {"grocery", "rendered"}
    for file in files:
        assert read_config(file).name == file.stem


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config(name="a").seed = 3  # type: ignore[misc]


AFTERWARDS = ("analyse", "centre", "calibrate", "novelty", "finish")


def stages(**sections: dict[str, Any]) -> list[str]:
    return [step.stage for step in plan(parse_config({"name": "a", **sections}, "c"), linear=False)]


def test_the_stages_come_in_the_published_order() -> None:
    found = stages(
        warm={"epochs": 1}, joint={"epochs": 4, "project_every": 2}, last_layers={"epochs": 2}, finetune={"epochs": 1}
    )
    assert found == [
        *("finetune", "reduce", "initialise", "warm"),
        *("joint", "joint", "project", "joint", "joint", "project"),
        *("last layers", "last layers"),
        *AFTERWARDS,
    ]


def test_last_layers_may_follow_every_projection() -> None:
    found = stages(
        warm={"epochs": 0},
        joint={"epochs": 4, "project_every": 2},
        last_layers={"epochs": 1, "after_each_projection": True},
    )
    assert found[2:] == [
        "joint",
        "joint",
        "project",
        "last layers",
        "joint",
        "joint",
        "project",
        "last layers",
        *AFTERWARDS,
    ]


def test_settings_of_the_command_line_are_read_as_yaml() -> None:
    settings = read_settings(["joint.epochs=3", "model.weights=null", "data.zoom=[0.5, 1]", "name=a=b"])
    assert settings == {"joint.epochs": 3, "model.weights": None, "data.zoom": [0.5, 1], "name": "a=b"}


@pytest.mark.parametrize(("setting", "cure"), [("joint.epochs", "write KEY=VALUE"), ("a=[1", "not valid YAML")])
def test_an_invalid_setting_is_named(setting: str, cure: str) -> None:
    with pytest.raises(InputError, match=cure):
        read_settings([setting])


def test_zoom_rises(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\ndata: {zoom: [1.2, 0.8]}\n")
    with pytest.raises(InputError, match="least factor first"):
        read_config(tmp_path / "c.yaml")


def test_calibration_and_novelty_may_be_switched_off() -> None:
    found = stages(calibration={"enabled": False}, novelty={"enabled": False})
    assert found[-1] == "finish" and not {"calibrate", "novelty"} & set(found)


def test_a_plain_classifier_is_calibrated_too() -> None:
    steps = plan(parse_config({"name": "a", "linear": {"epochs": 1}}, "c"), linear=True)
    assert [step.stage for step in steps] == ["linear", "calibrate", "finish"]


@pytest.mark.parametrize(
    ("section", "key", "value"), [(section, key, value) for (section, key), value in REMOVED.items()]
)
def test_the_configuration_of_an_old_run_is_read(section: str, key: str, value: object) -> None:
    old = {"name": "a", section: {key: value}}
    assert parse_config(old, "c") == Config(name="a")
    assert old == {"name": "a", section: {key: value}}


def test_a_removed_key_that_would_change_the_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown key 'start.inner_nodes'"):
        parse_config({"name": "a", "start": {"inner_nodes": False}}, "c")


def test_the_last_setting_of_a_key_wins() -> None:
    assert read_settings(["seed=1", "joint.epochs=3", "seed=2"]) == {"seed": 2, "joint.epochs": 3}


def test_a_setting_below_a_value_is_refused_by_the_value(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\nmodel: 3\n")
    with pytest.raises(InputError, match=r"model: .*given: 3"):
        read_config(tmp_path / "c.yaml", {"model.deeper.still": 1})
