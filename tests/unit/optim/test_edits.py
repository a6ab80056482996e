"""Edits of whole parameters and of fragments come to the same."""

import torch
from torch import nn

from distforge.optim.edits import PendingEdits
from distforge.optim.layout import FlatShard, Fragment, Piece


def scale_and_shift(tensor: torch.Tensor) -> None:
    rows = torch.arange(1, 5, dtype=tensor.dtype)[:, None]
    tensor.mul_(rows / 4).add_(rows - 1)


def halve(tensor: torch.Tensor) -> None:
    tensor.mul_(0.5)


def test_fragments_are_edited_as_the_whole_is():
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 3, generator=generator))
    values = parameter.detach().clone().view(-1)
    held = ((Fragment(0, 2, 0, 5),), (Fragment(0, 0, 5, 7),))
    piece = Piece("w", parameter, (4, 3), held)
    parts = [torch.cat([torch.zeros(2), values[:5]]), values[5:].clone()]
    whole = parameter.detach().clone()
    scale_and_shift(whole)
    halve(whole)
    for rank, part in enumerate(parts):
        edits = PendingEdits()
        edits.add(parameter, scale_and_shift)
        edits.add(parameter, halve)
        edits.apply_to_flat(FlatShard(part, (piece,)), rank)
    torch.testing.assert_close(torch.cat([parts[0][2:], parts[1]]), whole.view(-1))
    assert torch.equal(parts[0][:2], torch.zeros(2))


def test_an_edit_is_applied_once_and_to_its_own_parameter():
    mine, other = torch.ones(3), torch.ones(3)
    edits = PendingEdits()
    edits.add(mine, halve)
    for _ in range(2):
        edits.apply(mine)
    edits.apply(other)
    assert torch.equal(mine, torch.full((3,), 0.5))
    assert torch.equal(other, torch.ones(3))


def test_what_is_dropped_is_not_applied():
    mine = torch.ones(3)
    edits = PendingEdits()
    edits.add(mine, halve)
    edits.clear()
    edits.apply(mine)
    assert torch.equal(mine, torch.ones(3))
