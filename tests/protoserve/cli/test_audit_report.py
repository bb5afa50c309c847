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
    Console(file=output, width=200, highlight=False).print(*audit_report(card, read_bundle(bundle)), sep="\n")
    return [" ".join(line.split()) for line in output.getvalue().splitlines() if line.strip()]


def test_every_figure_has_interval_baseline_difference_and_images(tiny_bundle: Path) -> None:
    lines = printed(truth_card(), tiny_bundle)
    assert lines[0] == "tiny 12 pictures of toy/test, seed 0, 95 % intervals of 2000 resamples"
    assert "level 1, noise: similarity (PAC) 70.5 % [70.4 %, 70.6 %] 12.2 % 58.2 % [58.1 %, 58.4 %] 12" in lines
    assert "level 1, noise: rank (PRC) 2.0 [1.9, 2.1] 0.0 2.0 [1.9, 2.1] 12" in lines
    assert "level 1, noise: accuracy (AC) 0.50 [0.38, 0.62] 0.25 0.25 [0.12, 0.38] 12" in lines
    effect = "0.375 [0.250, 0.500] 0.188 0.062 0.188 [0.062, 0.312] 0.312 [0.188, 0.438] 12"
    assert f"level 1, mean colour {effect}" in lines and f"level 1, other picture {effect}" in lines
    assert "level 1, object: first 0.75 [0.62, 0.88] 0.25 0.50 [0.38, 0.62] 12" in lines
    assert "level 1: same parts 0.75 [0.62, 0.88] 0.12 0.62 [0.50, 0.75] 12" in lines
    assert "level 1: prototypes for 80 % 3.0 [2.9, 3.1] 6.0 -3.0 [-3.1, -2.9] 12" in lines
    flags = "5 telling, 2 always on, 1 at the border, 0 duplicates (30 pictures of train); --json lists them"
    assert f"8 prototypes: {flags}" in lines


def test_what_was_not_measured_is_left_out(tiny_bundle: Path) -> None:
    lines = printed(truth_card().model_copy(update={"parts": [], "stability": []}), tiny_bundle)
    assert not any("object" in line or "PLC" in line or "same parts" in line for line in lines)
    assert any(line.startswith("of 3 pieces the graph did not give") for line in lines)


def test_checks_say_whether_they_held(tiny_bundle: Path) -> None:
    lines = printed(truth_card(), tiny_bundle)
    assert lines[-2:] == ["passed the sums hold", "failed level 1: the boxes hold"]


def test_files_that_were_passed_over_are_told(tiny_bundle: Path) -> None:
    lines = printed(truth_card().model_copy(update={"passed_over": {"other_suffix": 2}}), tiny_bundle)
    assert lines[1] == "passed over 2 files: 2 without the suffix of a picture"
    assert not any(line.startswith("passed over") for line in printed(truth_card(), tiny_bundle))
