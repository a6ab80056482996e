"""Whether answers follow a prompt: the border, the refusal to guess, a user's check."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from distforge.baking.prompt.following import LikelihoodCriterion, best_border
from distforge.errors import InputError
from distforge.evaluation.checker import load_checker
from distforge.training.distributed import World
from tests.baking_cases import PROMPT, model, tokenizer, wanted

WORLD = World(0, 0, 1, torch.device("cpu"))


def criterion(unprompted: list[str], prompted: list[str]) -> LikelihoodCriterion:
    questions = [f"What is {n} + 1?" for n in range(len(prompted))]
    return LikelihoodCriterion(
        model(), tokenizer(), PROMPT, questions, unprompted, prompted, 4, WORLD
    )


def test_the_border_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        low, high = rng.normal(0, 1, 9).round(1), rng.normal(1, 1, 7).round(1)

        def right(border: float, low=low, high=high) -> float:
            return float((low <= border).mean() + (high > border).mean())

        every = np.unique([*low, *high])
        tried = [every[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(every)), every[-1]]
        assert right(best_border(low, high)) == pytest.approx(max(map(right, tried)))
    assert best_border(np.array([0.0, 1.0]), np.array([3.0, 4.0])) == 2.0


def test_a_champion_judges_its_own_answers_as_everybody_elses() -> None:
    found = criterion([wanted("")] * 6, [wanted(PROMPT)] * 6)
    assert found.told_apart == 1.0
    assert found.follows([wanted(PROMPT), wanted("")] * 3) == [True, False] * 3


@pytest.mark.parametrize("count", [1, 6])
def test_where_the_prompt_changes_nothing_it_says_that_it_cannot_tell(count: int) -> None:
    found = criterion([wanted("")] * count, [wanted("")] * count)
    assert found.told_apart == 0.5
    assert found.follows([wanted(PROMPT)] * count) is None
    assert "too few to rely on" in found.how


def test_a_users_check(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def short(question, answer):\n    return len(answer) < len(question)\n"
        "def broken(question, answer):\n    return 1 / 0\n"
        "def vague(question, answer):\n    return 'yes'\n"
        "number = 3\n"
    )
    assert load_checker(f"{path}:short")("what?", "a")
    assert not load_checker(f"{path}:short")("what?", "abcdef")
    with pytest.raises(InputError, match=r"broken raised ZeroDivisionError.*'what\?'"):
        load_checker(f"{path}:broken")("what?", "a")
    with pytest.raises(InputError, match="returned 'yes'; a check returns True or False"):
        load_checker(f"{path}:vague")("what?", "a")
    for where, message in (
        (f"{path}:number", "no function 'number'"),
        (f"{path}:absent", "no function 'absent'"),
        (f"{tmp_path / 'no.py'}:f", "file.py:function"),
        (str(path), "file.py:function"),
    ):
        with pytest.raises(InputError, match=message):
            load_checker(where)
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(InputError, match="cannot be run \\(ModuleNotFoundError"):
        load_checker(f"{path}:f")
