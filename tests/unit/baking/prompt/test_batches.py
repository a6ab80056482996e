"""The steps of prompt baking: who wrote the responses, how ranks share them, how a run resumes."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from distforge.baking.prompt.batches import PromptBatches
from distforge.baking.prompt.trajectories import Trajectory
from distforge.training.distributed import World
from distforge.training.supervised import SupervisedConfig

COUNT, STEPS = 20, 11
OLD = [Trajectory((2, 3, 10 + n), (10 + n,), (50,) * (1 + n % 4)) for n in range(COUNT)]


class Student:
    """Writes responses that tell the call and the seed."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def rewrite(self, indices, seed) -> list[Trajectory]:
        self.calls.append((tuple(indices), seed))
        return [Trajectory(OLD[i].prompted, OLD[i].plain, (60, seed % 40)) for i in indices]


def source(on_policy: float, rank: int = 0, size: int = 1, **changes):
    student = Student()
    config = SupervisedConfig(**{"batch_size": 6, "micro_batches": 2, "seed": 3, **changes})
    world = World(rank, rank, size, torch.device("cpu"))
    return PromptBatches(OLD, config, world, 0, on_policy, student.rewrite), student


def rows(batch) -> list[tuple[int, ...]]:
    """The student's rows of a step without padding."""
    return [
        tuple(ids[mask == 1].tolist())
        for part in batch.micro_batches
        for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
    ]


def served(batches) -> list[tuple[list[tuple[int, ...]], int, int]]:
    return [(rows(batch), batch.targets, batch.tokens) for batch in batches]


def test_off_policy_steps_serve_what_was_written() -> None:
    batches, student = source(0.0)
    assert batches.steps_per_epoch == 3
    steps = list(islice(batches.steps(0), 3))
    seen = [row for batch in steps for row in rows(batch)]
    assert len(set(seen)) == 18
    assert set(seen) <= {(*t.plain, *t.response) for t in OLD}
    assert student.calls == []
    for batch in steps:
        labelled = sum(int((part["labels"] != -100).sum()) for part in batch.micro_batches)
        assert batch.targets == labelled
        masks = ("attention_mask", "teacher_attention_mask")
        read = sum(int(part[mask].sum()) for part in batch.micro_batches for mask in masks)
        assert batch.tokens == read


def test_on_policy_steps_ask_the_student_when_they_are_due() -> None:
    batches, student = source(1.0)
    steps = batches.steps(0)
    assert student.calls == []  # not before the step: its weights would be old
    first = next(steps)
    assert len(student.calls) == 1
    second = next(steps)
    assert len(student.calls) == 2
    assert student.calls[0][1] != student.calls[1][1]
    for batch in (first, second):
        assert all(row[1] == 60 for row in rows(batch))
        assert batch.targets == 12


def test_targets_written_down_stand_in_for_the_teachers_inputs() -> None:
    written = [{"cached_states": torch.full((len(t.response), 2), i)} for i, t in enumerate(OLD)]
    config = SupervisedConfig(batch_size=6, micro_batches=2, seed=3)
    world = World(0, 0, 1, torch.device("cpu"))
    student = Student()
    batches = PromptBatches(OLD, config, world, 0, 0.5, student.rewrite, written)
    for step, batch in enumerate(islice(batches.steps(0), STEPS)):
        for part in batch.micro_batches:
            assert ("cached_states" in part) != batches.is_on_policy(step)
            assert ("teacher_input_ids" in part) == batches.is_on_policy(step)
            if "cached_states" in part:
                owners = [int(ids[0]) - 10 for ids in part["input_ids"]]
                wanted = [i for i in owners for _ in OLD[i].response]
                assert part["cached_states"][:, 0].tolist() == wanted


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_lambda_is_the_share_of_on_policy_steps(share: float) -> None:
    batches, student = source(share)
    drawn = [batches.is_on_policy(step) for step in range(2000)]
    # Four standard deviations of a binomial share.
    assert abs(sum(drawn) / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    list(islice(batches.steps(0), STEPS))
    assert len(student.calls) == sum(drawn[:STEPS])


@pytest.mark.parametrize("done", range(STEPS))
def test_a_resumed_run_serves_the_same_steps(done: int) -> None:
    straight, whole = source(0.5)
    expected = served(islice(straight.steps(0), STEPS))
    resumed, student = source(0.5)
    assert served(islice(resumed.steps(done), STEPS - done)) == expected[done:]
    assert student.calls == whole.calls[len(whole.calls) - len(student.calls) :]


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_ranks_share_a_step_without_overlap(on_policy: float) -> None:
    alone = list(islice(source(on_policy)[0].steps(0), STEPS))
    shares = [list(islice(source(on_policy, r, 2)[0].steps(0), STEPS)) for r in (0, 1)]
    for whole, first, second in zip(alone, *shares, strict=True):
        assert sorted(rows(whole)) == sorted(rows(first) + rows(second))
        assert len(first.micro_batches) == len(second.micro_batches) == 1
        assert whole.targets == first.targets == second.targets
