"""Every task: answers against an independent solver; the checker catches false traces."""

import random
import re
from fractions import Fraction

import pytest

from distforge.data import STRATEGIES, Example, verify_trace
from distforge.data.answers import same_answer
from distforge.data.generate import make_example
from distforge.data.tasks import TASKS, TASKS_BY_STRATEGY, TraceError
from distforge.data.tasks.base import check_arithmetic


def examples(name: str, count: int = 60) -> list[Example]:
    return [make_example(TASKS[name], seed, 1 + seed % 4) for seed in range(count)]


def corrupted(example: Example, **changes: str) -> Example:
    return Example(**{**example.__dict__, **changes})


def test_every_strategy_has_tasks_of_its_own() -> None:
    assert set(TASKS_BY_STRATEGY) == set(STRATEGIES)
    assert all(TASKS_BY_STRATEGY[strategy] for strategy in STRATEGIES)


@pytest.mark.parametrize("name", TASKS)
def test_solver_agrees_with_generator(name: str) -> None:
    for example in examples(name):
        assert same_answer(TASKS[name].solve(example.question), example.answer)
        assert verify_trace(example) == ("tags", "answer", "arithmetic", "form")


@pytest.mark.parametrize("name", TASKS)
def test_wrong_answer_is_refused(name: str) -> None:
    example = examples(name, 1)[0]
    wrong = "1/977" if "/" in example.answer else "z" if example.answer.isalpha() else "977"
    with pytest.raises(TraceError, match="not the answer"):
        verify_trace(corrupted(example, answer=wrong))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "swap_tracking"])
def test_false_equation_is_refused(name: str) -> None:
    for example in examples(name, 20):
        match = re.search(r"(\d+[-+*/]\d+=)(\d+)", example.reasoning)
        assert match is not None
        false = match[1] + str(int(match[2]) + 1)
        spoiled = example.reasoning[: match.start()] + false + example.reasoning[match.end() :]
        with pytest.raises(TraceError):
            verify_trace(corrupted(example, reasoning=spoiled))


@pytest.mark.parametrize("name", TASKS)
def test_missing_part_is_refused(name: str) -> None:
    example = examples(name, 1)[0]
    tag = {"expert_perspective": "<expert>", "orthogonal_wisdom": "<reason>"}.get(
        example.strategy,
        {"mece_decomposition": "<mece>", "falsification_testing": "<falsify>"}.get(
            example.strategy,
            {"self_doubt": "<doubt>", "bayesian_rationalist": "<reason>"}.get(
                example.strategy, "<step>"
            ),
        ),
    )
    start = example.reasoning.index(tag)
    end = re.compile(r"<").search(example.reasoning, start + 1)
    assert end is not None
    shorter = example.reasoning[:start] + example.reasoning[end.start() :]
    with pytest.raises(TraceError):
        verify_trace(corrupted(example, reasoning=shorter))


@pytest.mark.parametrize("reasoning", ["<step>1+1=2", "<think>1+1=2", "<think></think></think>"])
def test_open_tags_are_refused(reasoning: str) -> None:
    with pytest.raises(TraceError, match="not enclosed"):
        verify_trace(corrupted(examples("precedence", 1)[0], reasoning=reasoning))


def test_false_state_of_a_swap_is_refused() -> None:
    for example in examples("swap_tracking", 20):
        cup = re.findall(r":([1-5])<", example.reasoning)[-1]
        other = "1" if cup != "1" else "2"
        spoiled = example.reasoning.replace(f":{cup}<", f":{other}<")
        with pytest.raises(TraceError, match=r"it is not under|begins under"):
            verify_trace(corrupted(example, reasoning=spoiled))


def test_a_swap_must_begin_where_the_last_one_ended() -> None:
    for example in examples("swap_tracking", 20):
        cup = re.findall(r" ([1-5]),", example.reasoning)[-1]
        other = "1" if cup != "1" else "2"
        start = example.reasoning.rindex(f" {cup},")
        spoiled = example.reasoning[:start] + f" {other}," + example.reasoning[start + 3 :]
        with pytest.raises(TraceError, match=f"begins under {other}, not under {cup}"):
            verify_trace(corrupted(example, reasoning=spoiled))


def test_bayes_against_enumeration() -> None:
    """Draw from the bags exhaustively: picks x red draws x blue draws, all equally likely."""
    for example in examples("two_bags", 30):
        pattern = r"of (\d+) balls: P has (\d+) red, Q has (\d+) red, prior P:Q is (\d+):(\d+)"
        match = re.search(pattern, example.question)
        assert match is not None
        size, red_p, red_q, prior_p, prior_q = map(int, match.groups())
        bags = ["P"] * prior_p + ["Q"] * prior_q
        hits = [
            bag
            for bag in bags
            for first in range(size)
            for second in range(size)
            if first < (red := red_p if bag == "P" else red_q) and second >= red
        ]
        asked = example.question[-2]
        assert Fraction(hits.count(asked), len(hits)) == Fraction(example.answer)


def test_self_doubt_drafts_are_wrong_and_mended() -> None:
    for name in ("precedence", "fence_posts"):
        for example in examples(name):
            draft, correction = example.reasoning.split("<doubt>")
            drafted = re.findall(r"=(\d+)", draft)[-1]
            assert drafted != re.findall(r"=(\d+)", correction)[-1] == example.answer


@pytest.mark.parametrize("name", TASKS)
def test_canonical_parameters_decide_the_problem(name: str) -> None:
    """Equal canonical parameters must mean equal answers, or the split would part one problem."""
    task, seen = TASKS[name], {}
    rng = random.Random(0)
    for _ in range(3000):
        params = task.draw(rng, 1)
        answer = task.solve(task.render(params, rng)[0])
        assert same_answer(seen.setdefault(task.canonical(params), answer), answer)


@pytest.mark.parametrize(
    ("given", "truth", "same"),
    [
        ("6/14", "3/7", True),
        (" 12. ", "12", True),
        ("12", "13", False),
        ("b", "B", True),
        ("3/0", "3/0", True),
        ("3/0", "3", False),
        ("", "4", False),
        ("9" * 400, "4", False),
    ],
)
def test_same_answer(given: str, truth: str, same: bool) -> None:
    assert same_answer(given, truth) is same


def test_arithmetic_checker_counts_and_refuses() -> None:
    assert check_arithmetic("<step>2*3=6<step>Mon 12-7=5,6/3=2") == 3
    for wrong in ("2*3=7", "7/2=3", "4/0=0", "12-7=6"):
        with pytest.raises(TraceError):
            check_arithmetic(wrong)
