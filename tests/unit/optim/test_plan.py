"""Owners share the work, buckets bound the memory, and no matrix is lost or done twice."""

import math
import random
from collections import Counter

import pytest

from distforge.optim.exchange import Routes
from distforge.optim.layout import Fragment, Matrix
from distforge.optim.plan import batches, choose_owners, newton_schulz_cost, plan_buckets

SHAPES = [(64, 64), (64, 16), (16, 64), (128, 64), (8, 8)]


def flat_group(shapes: list[tuple[int, int]], ranks: int) -> list[Matrix]:
    """As ZeRO 1 and 2 lay them out: one after another, cut into equal parts."""
    total = sum(math.prod(s) for s in shapes)
    part = -(-total // ranks)
    matrices, at = [], 0
    for shape in shapes:
        held = []
        for rank in range(ranks):
            begin = max(at, rank * part)
            end = min(at + math.prod(shape), (rank + 1) * part)
            whole = (Fragment(0, begin - rank * part, begin - at, end - begin),)
            held.append(whole if end > begin else ())
        matrices.append(Matrix(shape, "matrix", tuple(held)))
        at += math.prod(shape)
    return matrices


def sliced(shapes: list[tuple[int, int]], ranks: int) -> list[Matrix]:
    """As ZeRO 3 does: an equal part of every matrix on each rank."""
    matrices, at = [], 0
    for shape in shapes:
        part = -(-math.prod(shape) // ranks)
        held = tuple((Fragment(0, at, r * part, part),) for r in range(ranks))
        matrices.append(Matrix(shape, "matrix", held))
        at += part
    return matrices


def many(seed: int, count: int = 60) -> list[tuple[int, int]]:
    return random.Random(seed).choices(SHAPES, k=count)


@pytest.mark.parametrize("layout", [flat_group, sliced])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("capacity", [1, 5000, 10**9])
def test_every_matrix_is_in_one_bucket_with_its_owner(layout, ranks, capacity):
    matrices = layout(many(0), ranks)
    buckets = plan_buckets(matrices, ranks, capacity)
    planned = [id(m) for bucket in buckets for m in bucket.matrices]
    assert Counter(planned) == Counter(map(id, matrices))
    owners = dict(zip(map(id, matrices), choose_owners(matrices, ranks), strict=True))
    for bucket in buckets:
        assert [owners[id(m)] for m in bucket.matrices] == list(bucket.owners)


@pytest.mark.parametrize("layout", [flat_group, sliced])
@pytest.mark.parametrize("ranks", [2, 4])
def test_buckets_respect_their_capacity_but_for_the_first_of_each_owner(layout, ranks):
    capacity = 10_000
    for bucket in plan_buckets(layout(many(1), ranks), ranks, capacity):
        for rank in range(ranks):
            owned = [
                m.numel for m, o in zip(bucket.matrices, bucket.owners, strict=True) if o == rank
            ]
            assert sum(owned) <= capacity or len(owned) == 1


@pytest.mark.parametrize("layout", [flat_group, sliced])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_work_is_balanced_to_within_the_largest_matrix(layout, ranks):
    matrices = layout(many(2), ranks)
    costs = [newton_schulz_cost(m) for m in matrices]
    load = [0.0] * ranks
    for cost, owner in zip(costs, choose_owners(matrices, ranks), strict=True):
        load[owner] += cost
    assert max(load) <= 1.05 * sum(costs) / ranks + max(costs)


def test_a_matrix_stays_with_the_rank_that_has_it():
    matrices = flat_group([(64, 64)] * 8, 2)
    assert choose_owners(matrices, 2) == [0] * 4 + [1] * 4
    routes = [Routes(b, 0, 2) for b in plan_buckets(matrices, 2, 10**9)]
    assert all(r.silent for r in routes)


@pytest.mark.parametrize("layout", [flat_group, sliced])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_what_one_rank_sends_the_other_expects(layout, ranks):
    for bucket in plan_buckets(layout(many(3), ranks), ranks, 20_000):
        routes = [Routes(bucket, rank, ranks) for rank in range(ranks)]
        for here in range(ranks):
            for there in range(ranks):
                assert routes[here].outgoing[there] == routes[there].incoming[here]
            numel = sum(fragment.numel for _, fragment in routes[here].held)
            assert numel == sum(m.held_by(here) for m in bucket.matrices)


def test_replicas_share_out_everything_and_send_before_the_iteration_nothing():
    whole = ((Fragment(0, 0, 0, 4096),),) * 4
    matrices = [Matrix((64, 64), "matrix", whole, copy_of=(0, 1, 2, 3)) for _ in range(8)]
    owners = choose_owners(matrices, 4)
    assert Counter(owners) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_matrices_of_one_shape_come_together_so_that_batches_are_large():
    shapes = [(64, 64), (64, 16), (64, 64), (16, 64)] * 8
    buckets = plan_buckets(flat_group(shapes, 1), 1, 8 * 64 * 64)
    of_shape: dict[tuple[int, int], list[int]] = {}
    for bucket in buckets:
        for batch in batches(dict(enumerate(bucket.matrices))):
            of_shape.setdefault((batch.m, batch.n), []).append(len(batch.numbers))
    assert of_shape == {(64, 64): [8, 8], (64, 16): [8], (16, 64): [8]}


def test_a_batch_counts_the_matrices_of_interleaved_projections():
    whole = ((Fragment(0, 0, 0, 3 * 8 * 8),),)
    interleaved = Matrix((8, 24), "fused_qkv", whole)
    plain = Matrix((8, 8), "matrix", ((Fragment(0, 192, 0, 64),),))
    (batch,) = batches({4: interleaved, 7: plain})
    assert (batch.numbers, batch.counts, batch.m, batch.n) == ((4, 7), (3, 1), 8, 8)
