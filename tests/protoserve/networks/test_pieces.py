"""Pieces of evidence that are not there are blank."""

from __future__ import annotations

import torch

from protoserve.networks.pieces import Pieces, concatenate


def test_pieces_that_are_not_there_are_blank_and_the_others_as_they_were() -> None:
    number, index = torch.arange(1.0, 5.0).reshape(1, 2, 2), torch.arange(1, 5).reshape(1, 2, 2)
    present = torch.tensor([[[True, False], [False, True]]])
    blanked = Pieces(index, number, 2 * number, 3 * number, 4 * index).where(present)
    assert blanked.prototype.tolist() == [[[1, -1], [-1, 4]]]
    assert blanked.similarity.tolist() == [[[1.0, 0.0], [0.0, 4.0]]]
    assert blanked.weight.tolist() == [[[2.0, 0.0], [0.0, 8.0]]]
    assert blanked.contribution.tolist() == [[[3.0, 0.0], [0.0, 12.0]]]
    assert blanked.cell.tolist() == [[[4, -1], [-1, 16]]]


def test_tables_are_joined_side_by_side_and_one_alone_stays_what_it_is() -> None:
    first, second = torch.ones(2, 3), torch.zeros(2, 1)
    assert concatenate([first, second]).shape == (2, 4)
    assert concatenate([first]) is first
