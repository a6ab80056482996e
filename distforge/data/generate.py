"""Making the reasoning dataset: derived from parameters, verified, split without leaks.

A question's split is a property of its canonical parameters (a hash decides), not of the draw. So
two datasets from different seeds, such as the champion's pretraining text and step 1's examples,
agree on what is held out, and no held-out problem, however worded or mirrored, is trained on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from distforge.activity import counted
from distforge.data.examples import of_split
from distforge.data.files import read_examples
from distforge.data.schema import Example
from distforge.data.strategies import STRATEGIES
from distforge.data.tasks import TASKS, TASKS_BY_STRATEGY, Task
from distforge.data.verify import verify_trace
from distforge.errors import InputError, require_in

HELDOUT_PERCENT = 10
DIFFICULTIES = (1, 2, 3, 4)
USUAL_DIFFICULTIES = (1, 2, 3)
# A pool that yields no new question in this many draws in a row counts as exhausted.
_EXHAUSTED_AFTER = 2000


@dataclass(frozen=True)
class DataConfig:
    """Which questions: of files, or made.

    path: a directory with a file for each split (train, and heldout, validation or test), what
        ``datasets.save_to_disk`` wrote, or a JSONL, CSV or Parquet file, of which a tenth is held
        out; empty makes questions. Where a command has other questions by default, it makes some
        if num_examples, seed or difficulties is set.
    num_examples: questions to make, at least 70, a tenth of them held out.
    seed: of the questions that are made.
    difficulties: of these, in equal shares, of 1 to 4. At 4 traces are as long as at 3, with
        larger numbers where there are any: questions for a model that was baked on 1 to 3.
    max_length: longest example in tokens; longer ones are left out, counted and reported.
    """

    SHORT: ClassVar[str] = "path"

    path: str = ""
    num_examples: int = 20_000
    seed: int = 0
    difficulties: tuple[int, ...] = USUAL_DIFFICULTIES
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.num_examples < 10 * len(STRATEGIES):
            raise InputError(
                f"num_examples is {self.num_examples}; expected at least {10 * len(STRATEGIES)}, "
                "so that every strategy has held-out questions"
            )
        levels = self.difficulties
        if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(DIFFICULTIES):
            raise InputError(
                f"difficulties is {list(levels)}; expected some of {list(DIFFICULTIES)}, each once"
            )
        require_in("[16, inf]", max_length=self.max_length)

    @property
    def is_given(self) -> bool:
        """Whether it says what data: a path, or what to make other than by default."""
        return replace(self, max_length=DataConfig.max_length) != DataConfig()


def split_of(task: Task, params: tuple[object, ...]) -> str:
    """``"heldout"`` for a tenth of all canonical parameters, ``"train"`` for the others."""
    text = f"{task.name}:{task.canonical(params)!r}"
    digest = hashlib.sha256(text.encode()).digest()
    return "heldout" if digest[0] * 256 + digest[1] < 65536 * HELDOUT_PERCENT / 100 else "train"


def load_data(config: DataConfig, *, split: str | None = None) -> Sequence[Example]:
    """The examples that ``config`` names, or makes; both splits.

    Args:
        split: of the rows of a single file that do not say; None splits them by content.
    """
    if config.path:
        return read_examples(Path(config.path).expanduser(), split=split)
    return make_examples(config.num_examples, config.seed, config.difficulties)


def make_example(task: Task, seed: int, difficulty: int) -> Example:
    """Draw, write and verify one example; equal arguments give an equal example."""
    return _verified(_draw(task, seed, difficulty))


def _verified(example: Example) -> Example:
    return replace(example, checks=verify_trace(example))


def _draw(task: Task, seed: int, difficulty: int) -> Example:
    rng = random.Random(seed)
    params = task.draw(rng, difficulty)
    question, reasoning, answer = task.render(params, rng)
    return Example(
        id=f"{task.name}-{hashlib.sha256(question.encode()).hexdigest()[:16]}",
        split=split_of(task, params),
        strategy=task.strategy,
        task=task.name,
        difficulty=difficulty,
        question=question,
        reasoning=f"<think>{reasoning}</think>",
        answer=answer,
        seed=seed,
        verifier=task.name,
    )


def _candidates(task: Task, seed: int, difficulties: Sequence[int]) -> Iterator[Example]:
    """Endless distinct examples of a task, not verified yet, until its pool seems exhausted."""
    seen: set[str] = set()
    misses = counter = 0
    while misses < _EXHAUSTED_AFTER:
        digest = hashlib.sha256(f"{seed}:{task.name}:{counter}".encode()).digest()
        example = _draw(
            task, int.from_bytes(digest[:6], "big"), difficulties[counter % len(difficulties)]
        )
        counter += 1
        if example.id in seen:
            misses += 1
            continue
        misses = 0
        seen.add(example.id)
        yield example


def _fill(
    strategy: str, quotas: dict[str, int], seed: int, difficulties: Sequence[int]
) -> list[Example]:
    """Take from the strategy's tasks in turn, by their shares, until both quotas are met."""
    left = dict(quotas)
    chosen: list[Example] = []
    sources = [
        source
        for task in TASKS_BY_STRATEGY[strategy]
        for source in [_candidates(task, seed, difficulties)] * task.share
    ]
    while sources and any(left.values()):
        for source in tuple(sources):
            example = next((e for e in source if left[e.split] > 0), None)
            if example is None:
                sources = [other for other in sources if other is not source]
            elif left[example.split] > 0:
                left[example.split] -= 1
                chosen.append(_verified(example))
            if not any(left.values()):
                break
    if any(left.values()):
        raise InputError(
            f"strategy {strategy} has only {len(chosen)} distinct questions for the "
            f"{sum(quotas.values())} requested; lower num_examples"
        )
    return chosen


def make_examples(
    num_examples: int, seed: int, difficulties: Sequence[int] = USUAL_DIFFICULTIES
) -> list[Example]:
    """``num_examples`` verified examples in a seeded order, a seventh for each strategy.

    A tenth of each strategy is held out. Raises `InputError` when a strategy has not enough
    distinct questions.
    """
    examples: list[Example] = []
    told = counted(STRATEGIES, f"making {num_examples:,} examples, strategies done")
    for index, strategy in enumerate(told):
        count = num_examples // len(STRATEGIES) + (index < num_examples % len(STRATEGIES))
        heldout = max(1, round(count * HELDOUT_PERCENT / 100))
        examples += _fill(
            strategy, {"train": count - heldout, "heldout": heldout}, seed, difficulties
        )
    random.Random(seed).shuffle(examples)
    return examples


def find_leaks(examples: Sequence[Example]) -> list[str]:
    """Held-out questions whose problem, up to wording and symmetry, is in the training split."""
    trained = {_problem(e) for e in of_split(examples, "train")}
    return [e.question for e in of_split(examples, "heldout") if _problem(e) in trained]


def _problem(example: Example) -> int:
    """What identifies a problem: its task and canonical parameters, drawn again from its seed.

    A row that its seed does not make (from outside, or altered) is identified by what it asks.
    """
    task = TASKS.get(example.verifier)
    if task is None or example.difficulty not in DIFFICULTIES:
        return hash((example.question, example.context))
    rng = random.Random(example.seed)
    params = task.draw(rng, example.difficulty)
    if task.render(params, rng)[0] != example.question:
        return hash((example.question, example.context))
    return hash((task.name, task.canonical(params)))
