"""A parameter seen as matrices; every element is in one of them, and in one fragment of it."""

import itertools
import math

import pytest
import torch

from distforge.optim.layout import Fragment, as_matrices, cut, from_matrices


def spread(numel: int, bounds: list[int]) -> list[list[Fragment]]:
    """One fragment a rank, cut at ``bounds``; on each rank it stands after 100 other elements."""
    edges = [0, *bounds, numel]
    return [
        [Fragment(0, 100, begin, end - begin)] if end > begin else []
        for begin, end in itertools.pairwise(edges)
    ]


CASES = [
    ((6, 4), "matrix"),
    ((3, 4, 5), "matrix"),
    ((12, 4), "fused_qkv"),
    ((4, 12), "fused_qkv"),
    ((4, 3, 2, 2), "conv"),
]


@pytest.mark.parametrize("bounds", [[], [7], [1, 2, 21], [0, 16, 16, 24]])
@pytest.mark.parametrize("shape,layout", CASES)
def test_the_matrices_put_together_from_fragments_are_those_of_the_parameter(shape, layout, bounds):
    numel = math.prod(shape)
    whole = torch.arange(numel, dtype=torch.float32)
    held = spread(numel, [min(b, numel) for b in bounds])
    memory = [
        torch.cat([torch.full((100,), -1.0), *(whole[f.offset : f.offset + f.numel] for f in own)])
        for own in held
    ]
    stacks = []
    for matrix in cut(shape, layout, held):
        flat = torch.full((matrix.numel,), -2.0)
        for rank, fragments in enumerate(matrix.held):
            for f in fragments:
                flat[f.offset : f.offset + f.numel] = memory[rank][f.start : f.start + f.numel]
        stacks.append(as_matrices(flat.view(matrix.shape), matrix.layout))
    assert torch.equal(torch.cat(stacks), as_matrices(whole.view(shape), layout))


def test_stacked_matrices_and_projections_are_cut_apart_interleaved_ones_are_not():
    assert len(cut((3, 4, 5), "matrix", [[Fragment(0, 0, 0, 60)]])) == 3
    assert len(cut((12, 4), "fused_qkv", [[Fragment(0, 0, 0, 48)]])) == 3
    assert len(cut((4, 12), "fused_qkv", [[Fragment(0, 0, 0, 48)]])) == 1


@pytest.mark.parametrize(
    "shape,layout,matrices",
    [
        ((4, 6), "matrix", (1, 4, 6)),
        ((5, 4, 6), "matrix", (5, 4, 6)),
        ((4, 3, 2, 2), "conv", (1, 4, 12)),
        ((12, 4), "fused_qkv", (3, 4, 4)),
        ((4, 12), "fused_qkv", (3, 4, 4)),
    ],
)
def test_matrices_and_back(shape, layout, matrices):
    tensor = torch.randn(shape)
    seen = as_matrices(tensor, layout)
    assert seen.shape == matrices
    assert torch.equal(from_matrices(seen, tensor.shape, layout), tensor)


def test_fused_blocks_are_query_key_and_value():
    stored_out_in, stored_in_out = torch.randn(12, 4), torch.randn(4, 12)
    for block, expected in zip(
        as_matrices(stored_out_in, "fused_qkv"), stored_out_in.chunk(3), strict=True
    ):
        assert torch.equal(block, expected)
    for block, expected in zip(
        as_matrices(stored_in_out, "fused_qkv"), stored_in_out.chunk(3, dim=1), strict=True
    ):
        assert torch.equal(block, expected)
