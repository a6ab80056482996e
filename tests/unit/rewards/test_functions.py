"""Users' functions: TRL's calling convention, and what happens where they break it."""

import math
import sys
import threading
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.rewards import RewardFunctions, Written

# As in TRL's documentation.
TRL_STYLE = """
def reward_func(completions, ground_truth, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]

def by_ids(completions_ids=None, completion_ids=None, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def strict(prompts, completions):
    return [None if prompt == "b" else 0.5 for prompt in prompts]

async def later(completions, trainer_state, **kwargs):
    return [trainer_state.global_step] * len(completions)

def raises(prompts, **kwargs):
    return [1 / (prompt != "b") for prompt in prompts]

def leaves(prompts, **kwargs):
    raise SystemExit(4)

def times_out(prompts, **kwargs):
    raise TimeoutError("the judge does not answer")

def nan(prompts, **kwargs):
    return [float("nan") if prompt == "b" else 1.0 for prompt in prompts]

def short(prompts, **kwargs):
    return [1.0]

def number(prompts, **kwargs):
    return 3

def text(prompts, **kwargs):
    return ["good"] * len(prompts)
"""
TRUTHS = {"ground_truth": ["x", "z"]}
BATCH = Written(["row 1", "row 2"], ["a", "b"], ["x", "y"], [[1], [2, 3]], TRUTHS)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rewards.py"
    path.write_text(TRL_STYLE)
    return str(path)


def test_a_function_written_for_trl_works_unchanged(file):
    talk = [[{"role": "assistant", "content": text}] for text in BATCH.completions]
    asked = [[{"role": "user", "content": prompt}] for prompt in BATCH.prompts]
    batch = Written(BATCH.rows, asked, talk, BATCH.completion_ids, BATCH.columns)
    judged = RewardFunctions([f"{file}:reward_func"])(batch)
    assert judged.rewards == [1.0, 0.0]


def test_several_are_added_up_with_weights_and_none_says_nothing(file):
    names = [f"{file}:by_ids", f"{file}:strict"]
    judged = RewardFunctions(names, [2.0, 10.0])(BATCH)
    assert judged.rewards == [7.0, 4.0]
    assert judged.components[names[0]] == [1.0, 2.0]
    assert math.isnan(judged.components[names[1]][1])
    alone = RewardFunctions([f"{file}:strict"])(BATCH)
    assert math.isnan(alone.rewards[1])


def test_a_coroutine_and_the_state(file):
    assert RewardFunctions([f"{file}:later"])(BATCH, step=7).rewards == [7, 7]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"rewards.py:raises' raised ZeroDivisionError: .*of row 'row 2'"),
        ("leaves", r"rewards.py:leaves' raised SystemExit: 4, .*of row 'row 1'"),
        ("times_out", r"raised TimeoutError: the judge does not answer, .*of row 'row 1'"),
        ("nan", r"gave nan to row 'row 2'; expected a finite number, or None"),
        ("short", "returned 1 values for 2 completions, from row 'row 1' on"),
        ("number", "returned int; expected a list"),
        ("text", "gave 'good' to row 'row 1'"),
    ],
)
def test_a_broken_promise_names_function_and_row(file, name, message):
    with pytest.raises(InputError, match=message):
        RewardFunctions([f"{file}:{name}"])(BATCH)


def test_a_function_that_never_ends_has_a_deadline(monkeypatch):
    never = threading.Event()
    functions = RewardFunctions(["exact"], deadline=0.05)
    monkeypatch.setattr(functions, "_functions", {"slow": lambda **_: never.wait()})
    with pytest.raises(InputError, match=r"'slow' took more than 0.05 s .* row 'row 1'"):
        functions(BATCH)
    never.set()


def test_a_column_that_the_data_lack(file):
    functions = RewardFunctions([f"{file}:reward_func"])
    functions.require_columns(["ground_truth"])
    with pytest.raises(InputError, match="wants the column 'ground_truth', and the data have"):
        functions.require_columns(["answer"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "expected one of math, exact"),
        ("regex:(", "no regular expression"),
        ("absent.py:score", "cannot be imported"),
        ("no.such.module:score", "cannot be imported"),
        ("math:nothing_here", "has no function 'nothing_here'"),
    ],
)
def test_what_is_no_function(name, message):
    with pytest.raises(InputError, match=message):
        RewardFunctions([name])


def test_weights_come_one_each():
    with pytest.raises(InputError, match="2 numbers for 1 functions"):
        RewardFunctions(["math"], [1.0, 2.0])


def test_a_file_with_dataclasses_and_late_annotations_loads(tmp_path):
    """Dataclasses look their module up by its name, whatever that file's name hides."""
    path = tmp_path / "math.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Mark:\n"
        "    points: float\n"
        "    kind: dataclasses.InitVar[str] = ''\n"
        "def score(completions, **columns):\n"
        "    return [Mark(float(len(text))).points for text in completions]\n"
    )
    assert RewardFunctions([f"{path}:score"])(BATCH).rewards == [1.0, 1.0]
    assert sys.modules["math"] is math
