"""A truth card as tables: every figure with its interval, its baseline and its images."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from protoserve.bundle.folder import read_bundle
from protoserve.bundle.truth_card import TruthCard
from protoserve.cli.audit_report import audit_report
from tests.truth_cards import truth_card


def printed(card: TruthCard, bundle: Path) -> list[str]:
    output = StringIO()
    Console(file=output, width=200, highlight=False, markup=False).print(
        *audit_report(card, read_bundle(bundle)), sep="\n"
    )
    return [" ".join(line.split()) for line in output.getvalue().splitlines() if line.strip()]


def test_every_figure_has_interval_baseline_difference_and_images(tiny_bundle: Path) -> None:
    lines = printed(truth_card(), tiny_bundle)
    assert lines[0] == "tiny 12 pictures of toy/test, seed 0, 95 % intervals of 2000 resamples"
    assert "level 1, noise: similarity (PAC) 70.5 % [70.4 %, 70.6 %] 12.2 % 58.2 % [58.1 %, 58.4 %] 12" in lines
    assert "level 1, noise: rank (PRC) 2.0 [1.9, 2.1] 0.0 2.0 [1.9, 2.1] 12" in lines
    assert "level 1, noise: accuracy (AC) 0.50 [0.38, 0.62] 0.25 0.25 [0.12, 0.38] 12" in lines
    assert "level 1: all 0.50 [0.38, 0.62] 0.12 0.38 [0.25, 0.50] 12" in lines
    effect = "0.375 [0.250, 0.500] 0.188 0.062 0.188 [0.062, 0.312] 0.312 [0.188, 0.438] 12"
    assert f"level 1, mean colour {effect}" in lines and f"level 1, other picture {effect}" in lines
    assert "level 1, object: first 0.75 [0.62, 0.88] 0.25 0.50 [0.38, 0.62] 12" in lines
    assert "level 1: correct 0.50 [0.38, 0.62] 0.00 0.50 [0.38, 0.62] 12" in lines
    assert "level 1, swapped: answers 0.88 [0.75, 1.00] 0.25 0.62 [0.50, 0.75] 12" in lines
    assert "level 1: same parts 0.75 [0.62, 0.88] 0.12 0.62 [0.50, 0.75] 12" in lines
    assert "level 1: prototypes for 80 % 3.0 [2.9, 3.1] 6.0 -3.0 [-3.1, -2.9] 12" in lines
    flags = "5 telling, 2 always on, 1 at the border, 1 off the object, 0 duplicates (30 pictures of train)"
    assert f"8 prototypes: {flags}; --json lists them" in lines


def test_prototypes_off_the_object_are_named_with_the_command_that_switches_them_off(tiny_bundle: Path) -> None:
    lines = printed(truth_card(), tiny_bundle)
    record = read_bundle(tiny_bundle).prototypes[1]
    assert f"1 Animal 0.94 0.75 +1.50 {record.source_image} {list(record.source_box)}" in lines
    assert f'protoserve curate {tiny_bundle} --output NEW --disable 1 --reason "…" --refit RUN' in lines
    card = truth_card()
    many = [card.prototypes.suspects[0]] * 23
    lines = printed(
        card.model_copy(update={"prototypes": card.prototypes.model_copy(update={"suspects": many})}), tiny_bundle
    )
    assert "and 3 more; --json lists them" in lines
    none = card.prototypes.model_copy(update={"suspects": []})
    assert not any("curate" in line for line in printed(card.model_copy(update={"prototypes": none}), tiny_bundle))


def test_consistent_prototypes_are_counted_beside_chance(tiny_bundle: Path) -> None:
    lines = printed(truth_card(), tiny_bundle)
    assert "level 1: 75% of 8 prototypes keep to one part, 25% with shuffled places" in lines
    patches = "62% of the most similar patches of 8 prototypes hold the same part, 12% with shuffled places"
    assert f"level 1: {patches} (pictures of train)" in lines


def test_what_was_not_measured_is_left_out(tiny_bundle: Path) -> None:
    card = truth_card()
    flags = card.prototypes.model_copy(update={"off_object": [], "suspects": []})
    names = ("parts", "stability", "consistency", "purity", "part_effects", "backgrounds")
    without: dict[str, object] = {name: [] for name in names} | {"prototypes": flags}
    lines = printed(card.model_copy(update=without), tiny_bundle)
    assert not any("object" in line or "PLC" in line or "same parts" in line or "one part" in line for line in lines)
    assert any(line.startswith("of 3 pieces the graph did not give") for line in lines)


def test_checks_say_whether_they_held(tiny_bundle: Path) -> None:
    lines = printed(truth_card(), tiny_bundle)
    assert lines[-2:] == ["passed the sums hold", "failed level 1: the boxes hold"]


def test_files_that_were_passed_over_are_told(tiny_bundle: Path) -> None:
    lines = printed(truth_card().model_copy(update={"passed_over": {"other_suffix": 2}}), tiny_bundle)
    assert lines[1] == "passed over 2 files: 2 without the suffix of a picture"
    assert not any(line.startswith("passed over") for line in printed(truth_card(), tiny_bundle))
