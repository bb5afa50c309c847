"""Arrays become predictions: hand-made outputs on an uneven tree, every number checked against the arrays."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import GraphRecord, Manifest, PrototypeRecord
from protoserve.errors import BundleError, InputError
from protoserve.graph_signature import OUTPUT_NAMES
from protoserve.images.geometry import Geometry, InputRule
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence import predictions
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.options import PredictOptions
from protoserve.schema import NoveltyRecord, NoveltyScore, Prediction
from protoserve.taxonomy import Taxonomy

# Fruit(0) Tool(1) Garlic(2) | Fruit/Apple(3) Fruit/Lemon(4) Tool/Knife(5) | Fruit/Apple/Gala(6)
# Fruit/Apple/Fuji(7)
TREE = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Tool/Knife", "Garlic"])
ROWS, COLUMNS, TOP_K, PROTOTYPES = 2, 4, 3, 6
GEOMETRY = Geometry(400, 200, 100, 100, 4.0, 2.0, 0.0, 0.0)
LEVELS, NODES = 3, 8


def bundle(kind: Literal["hierarchical", "flat"] = "hierarchical") -> Bundle:
    records = [
        PrototypeRecord(
            id=number,
            parent="Fruit",
            child="Fruit/Apple",
            source_image=f"train/{number}.jpg",
            source_box=(number, 1, 20, 30),
            source_cell=(0, 0),
            weight=1.0,
            usual=0.5,
            picture=f"prototypes/{number:04d}.webp",
        )
        for number in range(PROTOTYPES)
    ]
    manifest = Manifest(
        format=1,
        name="fruit",
        version="sha256:0",
        kind=kind,
        taxonomy=TREE.to_dict(),
        input=InputRule(height=100, width=100, resize="stretch"),
        graph=GraphRecord(
            rows=ROWS, columns=COLUMNS, prototypes=PROTOTYPES, top_k=TOP_K, similarity="log", epsilon=1e-4
        ),
        files={"onnx": "model.onnx"},
        prototypes=records,
        prior={name: 0.25 * node for node, name in enumerate(TREE.names)},
    )
    return Bundle(Path("fruit"), manifest)


def outputs(leaf: dict[str, float], images: int = 1) -> Outputs:
    """The graph's answer for the given leaf probabilities; three prototypes per level, the third missing.

    Each logit is 2 · node + 2, of which 6 are positive contributions; the second prototype speaks against the node.
    """
    chances = np.array([leaf.get(TREE.names[node], 0.0) for node in TREE.leaves])
    with np.errstate(divide="ignore"):
        log_probability = np.log(TREE.leaves_below @ chances).astype(np.float32)
    path = TREE.path_at_level[TREE.leaves[int(chances.argmax())]]
    evidence = (LEVELS, TOP_K)
    similarity = np.broadcast_to(np.array([4.0, 2.0, 0.0], dtype=np.float32), evidence)
    weight = np.broadcast_to(np.array([1.5, -0.5, 0.0], dtype=np.float32), evidence)
    one: dict[str, Any] = {
        "log_probability": log_probability,
        "logit": np.arange(NODES, dtype=np.float32) * 2 + 2,
        "path": path,
        "evidence_prototype": np.broadcast_to([4, 1, -1], evidence).astype(np.int64),
        "evidence_similarity": similarity,
        "evidence_weight": weight,
        "evidence_contribution": similarity * weight,
        "positive_contribution": np.full(LEVELS, 8.0, dtype=np.float32),
        **{
            f"against_{name}": np.broadcast_to(np.array(values), evidence).astype(
                np.int64 if name in ("prototype", "cell") else np.float32
            )
            for name, values in (
                ("prototype", [1, 4, -1]),
                ("similarity", [2.0, 4.0, 0.0]),
                ("weight", [-0.5, 1.5, 0.0]),
                ("contribution", [-1.0, 6.0, 0.0]),
                ("cell", [0, 6, -1]),
            )
        },
        "evidence_cell": np.broadcast_to([6, 0, -1], evidence).astype(np.int64),
        "evidence_map": np.arange(LEVELS * TOP_K * ROWS * COLUMNS, dtype=np.float32).reshape(*evidence, ROWS, COLUMNS),
        "similarity": np.zeros(PROTOTYPES, dtype=np.float32),
        "cell": np.zeros(PROTOTYPES, dtype=np.int64),
    }
    return Outputs(**{name: np.stack([array] * images) for name, array in one.items()})


GALA = {
    "Fruit/Apple/Gala": 0.5,
    "Fruit/Apple/Fuji": 0.2,
    "Fruit/Lemon": 0.1,
    "Tool/Knife": 0.15,
    "Garlic": 0.05,
}
KNIFE = {"Tool/Knife": 0.9, "Garlic": 0.1}


def predict(
    leaf: dict[str, float], kind: Literal["hierarchical", "flat"] = "hierarchical", **choices: Any
) -> Prediction:
    table = EvidenceTable.of(bundle(kind))
    return predictions(outputs(leaf), table, [GEOMETRY], PredictOptions(**choices).resolved(table))[0]


def test_the_path_and_its_probabilities() -> None:
    prediction = predict(GALA)
    assert prediction.path == ["Fruit", "Apple", "Gala"]
    assert [level.node for level in prediction.levels] == ["Fruit", "Fruit/Apple", "Fruit/Apple/Gala"]
    assert [level.label for level in prediction.levels] == ["Fruit", "Apple", "Gala"]
    assert [level.level for level in prediction.levels] == [1, 2, 3]
    assert [level.probability for level in prediction.levels] == pytest.approx([0.8, 0.7, 0.5], rel=1e-6)
    assert [level.conditional for level in prediction.levels] == pytest.approx([0.8, 7 / 8, 5 / 7], rel=1e-6)
    assert not any(level.forced for level in prediction.levels)
    assert prediction.model.name == "fruit" and prediction.model.version == "sha256:0"
    assert (prediction.image.width, prediction.image.height) == (400, 200)
    assert prediction.known_through_level is None


def test_a_leaf_above_the_deepest_level_ends_the_path() -> None:
    prediction = predict({"Garlic": 0.7, "Fruit/Lemon": 0.3})
    assert prediction.path == ["Garlic"] and len(prediction.levels) == 1


def test_alternatives_are_the_most_probable_others_of_the_level() -> None:
    levels = predict(GALA).levels
    assert [other.node for other in levels[0].alternatives] == ["Tool", "Garlic"]
    assert [other.probability for other in levels[0].alternatives] == pytest.approx([0.15, 0.05])
    assert [other.node for other in levels[1].alternatives] == ["Tool/Knife", "Fruit/Lemon"]
    assert [other.label for other in levels[1].alternatives] == ["Knife", "Lemon"]
    assert [other.node for other in levels[2].alternatives] == ["Fruit/Apple/Fuji"]
    assert [len(level.alternatives) for level in predict(GALA, alternatives=1).levels] == [1, 1, 1]
    assert [len(level.alternatives) for level in predict(GALA, alternatives=0).levels] == [0, 0, 0]
    assert len(predict(GALA, alternatives=10**9).levels[0].alternatives) == 2


def test_impossible_alternatives_never_name_the_predicted_node() -> None:
    for level in predict({"Garlic": 1.0}).levels:
        assert [other.node for other in level.alternatives] == ["Fruit", "Tool"]
        assert [other.probability for other in level.alternatives] == [0, 0]


def test_evidence_carries_the_arrays_the_box_and_the_source() -> None:
    (first,), (second,) = predict(GALA).levels[1].evidence, predict(GALA).levels[1].against
    assert (first.prototype, second.prototype) == (4, 1)
    assert (first.similarity, first.usual, first.weight, first.contribution) == (4.0, 0.5, 1.5, 6.0)
    assert (second.similarity, second.weight, second.contribution) == (2.0, -0.5, -1.0)
    # Not measured for this bundle.
    assert first.seen is None
    # Cell 6 of 2 × 4 is row 1, column 2; the map covers 400 × 200 pixels.
    assert first.box == (200, 100, 300, 200) and second.box == (0, 0, 100, 100)
    assert first.source is not None
    assert first.source.image == "train/4.jpg" and first.source.box == (4, 1, 20, 30)
    assert first.source.href is None
    assert first.map is None


def test_evidence_says_how_far_an_untiled_network_sees_around_its_cell() -> None:
    table = EvidenceTable.of(bundle())
    table = replace(table, cells=tuple(replace(cells, reach=(30, 20)) for cells in table.cells))
    (level, *_) = predictions(outputs(GALA), table, [GEOMETRY])[0].levels
    # The centre of cell 6 is (62.5, 75) of 100 × 100 model pixels, which are 4 × 2 of the sender's.
    assert level.evidence[0].seen == (170, 90, 330, 200)
    tiled = replace(table, cells=tuple(replace(cells, tile=50, step=25) for cells in table.cells))
    assert predictions(outputs(GALA), tiled, [GEOMETRY])[0].levels[0].evidence[0].seen is None


def test_prior_evidence_against_and_rest_add_up_to_the_logit() -> None:
    # Node 3 has the prior 0.75 and the logit 8; 6 speak for it and 1 against it, so 2.25 are not shown.
    level = predict(GALA).levels[1]
    assert (level.logit, level.prior, level.rest) == (8.0, 0.75, 2.25)
    none = predict(GALA, top_k=0).levels[1]
    assert none.evidence == [] and none.against == [] and none.rest == 7.25


def test_the_share_is_the_shown_part_of_all_that_speaks_for_the_node() -> None:
    assert predict(GALA).levels[1].evidence_share == pytest.approx(6.0 / 8.0)
    assert predict(GALA, top_k=0).levels[1].evidence_share == 0.0


def test_the_share_of_a_negative_logit_is_a_share_too() -> None:
    given = outputs(GALA)
    given = replace(given, logit=-given.logit)
    level = predictions(given, EvidenceTable.of(bundle()), [GEOMETRY])[0].levels[0]
    assert level.logit == -2.0 and level.evidence_share == pytest.approx(6.0 / 8.0)


def test_where_nothing_speaks_for_a_node_nothing_is_hidden() -> None:
    given = replace(outputs(GALA), positive_contribution=np.zeros((1, LEVELS), dtype=np.float32))
    assert predictions(given, EvidenceTable.of(bundle()), [GEOMETRY])[0].levels[0].evidence_share == 1.0


def test_no_share_where_nobody_knows_what_is_hidden() -> None:
    given = replace(outputs(GALA), positive_contribution=np.full((1, LEVELS), np.nan, dtype=np.float32))
    assert predictions(given, EvidenceTable.of(bundle()), [GEOMETRY])[0].levels[0].evidence_share is None


def test_maps_are_rows_from_top_to_bottom() -> None:
    given = outputs(GALA)
    table = EvidenceTable.of(bundle())
    level = predictions(given, table, [GEOMETRY], PredictOptions(maps=True).resolved(table))[0].levels[2]
    assert np.array_equal(np.array(level.evidence[0].map), given.evidence_map[0, 2, 0])
    assert np.array(level.evidence[0].map).shape == (ROWS, COLUMNS)
    assert level.against[0].map is None


def test_an_only_child_is_certain_and_needs_no_evidence() -> None:
    tool, knife = predict(KNIFE).levels
    assert not tool.forced and tool.evidence
    assert knife.forced and knife.conditional == 1.0 and knife.probability == pytest.approx(0.9)
    assert knife.logit is None and knife.prior is None and knife.rest is None and knife.evidence == []
    assert knife.evidence_share == 1.0 and knife.against == []


def test_a_flat_model_has_evidence_for_leaves_alone() -> None:
    levels = predict(GALA, "flat").levels
    assert [level.logit is None for level in levels] == [True, True, False]
    assert [len(level.evidence) for level in levels] == [0, 0, 1]
    assert not any(level.forced for level in levels)
    # Among all leaves even an only child competes.
    tool, knife = predict(KNIFE, "flat").levels
    assert knife.evidence and not knife.forced and knife.conditional == pytest.approx(1.0)
    assert tool.logit is None


def test_probabilities_survive_underflow() -> None:
    given = outputs(GALA)
    log_probability = given.log_probability.copy()
    log_probability[0, [0, 3, 6]] = [-200.0, -201.0, -202.0]
    levels = predictions(replace(given, log_probability=log_probability), EvidenceTable.of(bundle()), [GEOMETRY])[
        0
    ].levels
    assert levels[2].conditional == pytest.approx(math.exp(-1))


def test_every_image_of_a_batch_gets_its_own_answer() -> None:
    table = EvidenceTable.of(bundle())
    gala, knife = outputs(GALA), outputs(KNIFE)
    both = Outputs(**{name: np.concatenate([getattr(gala, name), getattr(knife, name)]) for name in OUTPUT_NAMES})
    other = Geometry(100, 100, 100, 100, 1.0, 1.0, 0.0, 0.0)
    answers = predictions(both, table, [GEOMETRY, other])
    assert answers == [predictions(gala, table, [GEOMETRY])[0], predictions(knife, table, [other])[0]]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"top_k": 4}, "top_k must be from 0 to 3, not 4"),
        ({"top_k": -1}, "top_k must be from 0 to 3, not -1"),
        ({"alternatives": -1}, "alternatives must be 0 or more, not -1"),
    ],
)
def test_choices_out_of_range_name_the_limit(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(GALA, **choices)


def test_a_graph_that_gives_no_number_is_refused() -> None:
    given = outputs(GALA)
    broken = given.log_probability.copy()
    broken[0, 5] = np.nan
    with pytest.raises(BundleError, match="not a finite number"):
        predictions(replace(given, log_probability=broken), EvidenceTable.of(bundle()), [GEOMETRY])


def test_each_image_needs_its_geometry() -> None:
    with pytest.raises(InputError, match="2 images but 1 geometries"):
        predictions(outputs(GALA, 2), EvidenceTable.of(bundle()), [GEOMETRY])


# ---- known and unknown -----------------------------------------------------------------------------------------------


def with_novelty(
    score: NoveltyScore, thresholds: dict[str, float], kind: Literal["hierarchical", "flat"] = "hierarchical"
) -> EvidenceTable:
    good = bundle(kind)
    record = NoveltyRecord(score=score, true_positive_rate=0.95, thresholds=thresholds)
    return EvidenceTable.of(Bundle(good.directory, good.manifest.model_copy(update={"novelty": record})))


def test_without_thresholds_known_is_null() -> None:
    prediction = predict(GALA)
    assert prediction.known_through_level is None
    assert [level.known for level in prediction.levels] == [None, None, None]


@pytest.mark.parametrize(
    ("thresholds", "known"),
    [
        # Conditionals along the path: 0.8, 7/8 and 5/7.
        ({"": 0.79, "Fruit": 0.87, "Fruit/Apple": 0.71}, [True, True, True]),
        ({"": 0.79, "Fruit": 0.87, "Fruit/Apple": 0.72}, [True, True, False]),
        ({"": 0.79, "Fruit": 0.88, "Fruit/Apple": 0.71}, [True, False, False]),
        ({"": 0.81, "Fruit": 0.87, "Fruit/Apple": 0.71}, [False, False, False]),
        ({"": 0.79, "Fruit/Apple": 0.71}, [True, True, True]),
    ],
)
def test_a_picture_is_known_down_to_the_first_level_that_it_does_not_fit(
    thresholds: dict[str, float], known: list[bool]
) -> None:
    table = with_novelty("probability", thresholds)
    prediction = predictions(outputs(GALA), table, [GEOMETRY])[0]
    assert [level.known for level in prediction.levels] == known
    assert prediction.known_through_level == sum(known)


def test_an_only_child_is_as_known_as_its_parent() -> None:
    for least, known in ((0.85, [True, True]), (0.95, [False, False])):
        table = with_novelty("probability", {"": least})
        prediction = predictions(outputs(KNIFE), table, [GEOMETRY])[0]
        assert [level.known for level in prediction.levels] == known


def test_one_threshold_decides_for_all_levels_of_a_flat_model() -> None:
    for least, known in ((0.49, True), (0.51, False)):
        table = with_novelty("probability", {"": least}, "flat")
        prediction = predictions(outputs(GALA), table, [GEOMETRY])[0]
        assert [level.known for level in prediction.levels] == [known] * 3


def test_thresholds_of_nodes_that_are_not_there_are_refused() -> None:
    with pytest.raises(BundleError, match="name nodes that its taxonomy does not have"):
        with_novelty("energy", {"Fruits": 0.5})
