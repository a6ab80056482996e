"""Who orthogonalises which matrix, and in which order: the same plan on every rank.

A plan depends on the layout alone, so ranks agree on it without a word. Every matrix has one owner
and stands in one bucket; the buckets bound how much of a step is in memory at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distforge.optim.layout import Matrix, matrix_shape

# An owner may have this much more than its share of the work where that saves moving a matrix.
_SLACK = 1.05


@dataclass(frozen=True)
class Bucket:
    """Matrices that travel together; ``owners[i]`` is the rank that orthogonalises number i."""

    matrices: tuple[Matrix, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Matrices of one shape, which are orthogonalised in one call.

    numbers: those of the matrices. counts: how many m x n matrices each is.
    """

    numbers: tuple[int, ...]
    counts: tuple[int, ...]
    m: int
    n: int


def batches(matrices: Mapping[int, Matrix]) -> list[Batch]:
    """The batches of matrices given by number."""
    together: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, matrix in matrices.items():
        count, m, n = matrix_shape(matrix.shape, matrix.layout)
        together.setdefault((m, n), []).append((number, count))
    return [
        Batch(tuple(number for number, _ in pairs), tuple(count for _, count in pairs), m, n)
        for (m, n), pairs in together.items()
    ]


def plan_buckets(
    matrices: Sequence[Matrix], world_size: int, capacity: int, load: list[float] | None = None
) -> list[Bucket]:
    """Buckets that hold every matrix once.

    Args:
        matrices: in the order in which they lie in memory.
        world_size: number of ranks, that of ``matrix.held``.
        capacity: largest number of elements that a rank holds, and that it owns, of one bucket.
            The first matrix of each owner is let in whatever its size: were a large one alone in
            its bucket, the other ranks would wait for its owner.
        load: the work that ranks have already, as `choose_owners` takes it.
    """
    owners = choose_owners(matrices, world_size, load)
    queues: list[deque[Matrix]] = [deque() for _ in range(world_size)]
    # Shape by shape: those of one shape in a bucket are one batch, and owners whose matrices are
    # alike are done at the same time.
    first_of_shape: dict[tuple[int, ...], int] = {}
    for index, matrix in enumerate(matrices):
        first_of_shape.setdefault(matrix.shape, index)
    together = sorted(range(len(matrices)), key=lambda i: first_of_shape[matrices[i].shape])
    for index in together:
        queues[owners[index]].append(matrices[index])
    buckets = []
    while any(queues):
        buckets.append(_fill(queues, capacity))
    return buckets


def choose_owners(
    matrices: Sequence[Matrix], world_size: int, load: list[float] | None = None
) -> list[int]:
    """The owner of each matrix: the rank that holds most of it, unless it has enough work already.

    ``load`` is the work of each rank so far, by `newton_schulz_cost`; what it gets here is added.

    The largest go first, and one whose majority holder is busy (or that is spread evenly) goes to
    the rank with the least to do (Graham 1969, longest processing time first).
    """
    costs = [_cost(matrix) for matrix in matrices]
    load = [0.0] * world_size if load is None else load
    share = _SLACK * (sum(costs) + sum(load)) / world_size
    owners = [0] * len(matrices)
    for index in sorted(range(len(matrices)), key=lambda i: (-costs[i], i)):
        owner = _majority_holder(matrices[index], world_size)
        if owner is None or load[owner] + costs[index] > share:
            owner = min(range(world_size), key=lambda rank: load[rank])
        owners[index] = owner
        load[owner] += costs[index]
    return owners


def _cost(matrix: Matrix) -> float:
    # An owner answers every copy: where there are some, what it sends is what to share out.
    copies = len(set(matrix.copy_of))
    return matrix.numel if 1 < copies < len(matrix.held) else newton_schulz_cost(matrix)


def newton_schulz_cost(matrix: Matrix) -> float:
    """Multiplications of an iteration, up to a common factor: 2 s² l + s³ for s <= l."""
    count, m, n = matrix_shape(matrix.shape, matrix.layout)
    short, long = min(m, n), max(m, n)
    return float(count * (2 * short**2 * long + short**3))


def _majority_holder(matrix: Matrix, world_size: int) -> int | None:
    if matrix.replicated:
        return None
    held = [matrix.held_by(rank) for rank in range(world_size)]
    most = max(held)
    return held.index(most) if held.count(most) == 1 else None


def _fill(queues: list[deque[Matrix]], capacity: int) -> Bucket:
    """Takes one matrix of each owner in turn, until the next one of no owner fits."""
    size = len(queues)
    owned, held = [0] * size, [0] * size
    matrices: list[Matrix] = []
    owners: list[int] = []
    open_owners = set(range(size))
    while open_owners:
        for owner in sorted(open_owners):
            matrix = queues[owner][0] if queues[owner] else None
            if matrix is None or (owned[owner] and not _fits(matrix, owner, owned, held, capacity)):
                open_owners.discard(owner)
                continue
            queues[owner].popleft()
            matrices.append(matrix)
            owners.append(owner)
            owned[owner] += matrix.numel
            for rank in range(size):
                held[rank] += matrix.held_by(rank)
    return Bucket(tuple(matrices), tuple(owners))


def _fits(matrix: Matrix, owner: int, owned: list[int], held: list[int], capacity: int) -> bool:
    # What every rank has a copy of is filtered and comes back in portions (exchange.Gather).
    return owned[owner] + matrix.numel <= capacity and (
        matrix.replicated
        or all(count + matrix.held_by(rank) <= capacity for rank, count in enumerate(held))
    )
