"""The declared outputs of the graphs, as exporter, parity and engines derive them."""

import dataclasses

import numpy as np

from protoserve.graph_signature import (
    OUTPUT_NAMES,
    OUTPUTS,
    ROUTED_OUTPUTS,
    Explanation,
    GraphOutput,
    RoutedExplanation,
    named_arrays,
)


def test_names_types_and_dimensions_of_the_full_graph() -> None:
    # Hosts read the outputs by place, too: their order is part of the contract.
    assert OUTPUT_NAMES == (
        "log_probability",
        "logit",
        "path",
        "evidence_prototype",
        "evidence_similarity",
        "evidence_weight",
        "evidence_contribution",
        "evidence_cell",
        "evidence_map",
        "similarity",
        "cell",
        "positive_contribution",
        "against_prototype",
        "against_similarity",
        "against_weight",
        "against_contribution",
        "against_cell",
    )
    outputs = {output.name: output for output in OUTPUTS}
    assert outputs["log_probability"] == GraphOutput("log_probability", "float", ("images", "nodes"))
    assert outputs["path"] == GraphOutput("path", "int64", ("images", "levels"))
    assert outputs["evidence_map"].dimensions == ("images", "levels", "evidence", "rows", "columns")
    assert outputs["cell"] == GraphOutput("cell", "int64", ("images", "prototypes"))


def test_a_routed_graph_has_the_evidence_of_the_full_one() -> None:
    kinds = ("evidence_", "against_", "positive_")
    full = {output.name: output for output in OUTPUTS if output.name.startswith(kinds)}
    routed = {output.name: output for output in ROUTED_OUTPUTS if output.name.startswith(kinds)}
    assert routed == full
    assert ROUTED_OUTPUTS[0] == GraphOutput("certain", "bool", ("images",))


def test_named_arrays_come_in_the_order_of_the_outputs_without_fields_that_no_graph_has() -> None:
    arrays = {field.name: np.full(1, number) for number, field in enumerate(dataclasses.fields(Explanation))}
    found = named_arrays(Explanation(**arrays))
    assert list(found) == list(OUTPUT_NAMES)
    assert all(found[name] is arrays[name] for name in OUTPUT_NAMES)
    routed = {field.name: np.zeros(1) for field in dataclasses.fields(RoutedExplanation)}
    assert list(named_arrays(RoutedExplanation(**routed))) == [output.name for output in ROUTED_OUTPUTS]
