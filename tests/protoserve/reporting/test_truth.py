"""The truth card in a report."""

from __future__ import annotations

from protoserve.reporting.truth import card_figures, prototype_shares, truth_section
from tests.truth_cards import truth_card


def test_the_truth_card_shows_every_statement_and_figure() -> None:
    card = truth_card()
    shown = truth_section(card)
    assert "1 of 2 statements hold on 12 pictures of toy/test." in shown
    assert "<b>fails</b> level 1: the boxes hold" in shown
    figures = dict(card_figures(card))
    assert len(figures) == 18 and all(name in shown for name in figures)
    assert "0.75 [0.625, 0.875]" in shown
    assert 'href="#prototype=1">prototype 1 of Animal</a>' in shown and "94 % (chance 75 %)" in shown


def test_figures_over_prototypes_have_no_interval() -> None:
    assert list(prototype_shares(truth_card())) == [
        ("level 1: keep to one part, of 8 prototypes", 0.75, 0.25),
        ("level 1: part purity of 8 prototypes", 0.625, 0.125),
    ]
    row = "<td>0.75</td><td>0.25</td><td>0.5</td><td>–</td>"
    name = "level 1: keep to one part, of 8 prototypes"
    assert f'<th scope="row">{name}</th>{row}' in truth_section(truth_card())


def test_without_a_card_the_section_says_how_to_get_one() -> None:
    assert "protoserve audit BUNDLE" in truth_section(None)
