"""The dataset: deterministic, stratified, without repeats or leaks."""

import time
from collections import Counter

import pytest

from distforge.data import STRATEGIES, dataset_sha256, make_examples
from distforge.data.generate import DataConfig, find_leaks, make_example
from distforge.data.tasks import TASKS
from distforge.data.tasks.base import EQUATION
from distforge.errors import InputError


@pytest.fixture(scope="module")
def full() -> tuple[list, float]:
    # CPU time: what else the machine does is not what is tested.
    began = time.process_time()
    return make_examples(20_000, 0), time.process_time() - began


def test_twenty_thousand_in_twenty_seconds(full: tuple[list, float]) -> None:
    examples, seconds = full
    assert len(examples) == 20_000
    assert seconds <= 20


def test_stratified_and_split(full: tuple[list, float]) -> None:
    counts = Counter((e.strategy, e.split) for e in full[0])
    for strategy in STRATEGIES:
        train, heldout = counts[strategy, "train"], counts[strategy, "heldout"]
        assert train + heldout in (2857, 2858)
        assert heldout == 286


def test_no_question_twice_and_no_leak(full: tuple[list, float]) -> None:
    questions = [e.question for e in full[0]]
    assert len(set(questions)) == len(questions)
    assert find_leaks(full[0]) == []


def test_leak_is_found_when_there_is_one(full: tuple[list, float]) -> None:
    heldout = next(e for e in full[0] if e.split == "heldout")
    moved = type(heldout)(**{**heldout.__dict__, "split": "train"})
    assert heldout.question in find_leaks([*full[0], moved])


def test_mirrored_problems_share_a_split() -> None:
    """A sum told in another order is the same problem."""
    task = TASKS["two_orders"]
    assert task.canonical((3, 9, 14)) == task.canonical((14, 3, 9))
    corner = TASKS["corner_area"]
    assert corner.canonical((5, 7, 2, 3)) == corner.canonical((7, 5, 3, 2))


def test_other_seeds_hold_out_the_same_problems() -> None:
    """The champion's text and step 1's data differ in seed; neither may hold the other's tests."""
    heldout = [e for e in make_examples(700, 0) if e.split == "heldout"]
    other = [e for e in make_examples(2_100, 1001) if e.split == "train"]
    assert find_leaks([*heldout, *other]) == []


def test_deterministic_and_seeded() -> None:
    assert dataset_sha256(make_examples(700, 5)) == dataset_sha256(make_examples(700, 5))
    assert dataset_sha256(make_examples(700, 5)) != dataset_sha256(make_examples(700, 6))


def test_a_row_is_made_again_from_its_seed() -> None:
    for example in make_examples(140, 3):
        again = make_example(TASKS[example.task], example.seed, example.difficulty)
        assert again == example


def test_difficulties_come_in_equal_shares() -> None:
    counts = Counter(e.difficulty for e in make_examples(1_400, 0, (2, 4)))
    assert set(counts) == {2, 4}
    assert abs(counts[2] - counts[4]) < 140
    assert {e.difficulty for e in make_examples(140, 0)} == {1, 2, 3}


def test_the_hardest_ask_for_other_sums_in_traces_as_long() -> None:
    """Who learned 1 to 3 can lay out a trace of 4, but has to reckon what it never saw."""
    longest: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    sums: dict[bool, dict[str, set[str]]] = {hard: {t: set() for t in TASKS} for hard in longest}
    for e in [*make_examples(8_400, 0), *make_examples(2_100, 0, (4,))]:
        hard = e.difficulty == 4
        longest[hard][e.task] = max(longest[hard][e.task], e.reasoning.count("<"))
        sums[hard][e.task].update("".join(found) for found in EQUATION.findall(e.reasoning))
    assert longest[True] == longest[False]
    share = {t: len(sums[True][t] - sums[False][t]) / max(len(sums[True][t]), 1) for t in TASKS}
    assert {t for t in TASKS if share[t] < 0.05} == {"swap_tracking"}, share


def test_the_hardest_are_held_out_as_the_others_are() -> None:
    """What is held out at 4 may also be drawn at 1 to 3: it is not trained on there either."""
    heldout = [e for e in make_examples(2_100, 1, (4,)) if e.split == "heldout"]
    trained = [e for e in make_examples(2_100, 0) if e.split == "train"]
    assert find_leaks([*heldout, *trained]) == []


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"difficulties is \[0, 1\].*each once"):
        DataConfig(difficulties=(0, 1))
    with pytest.raises(InputError, match=r"difficulties is \[\]"):
        DataConfig(difficulties=())
    with pytest.raises(InputError, match=r"difficulties is \[2, 2\]"):
        DataConfig(difficulties=(2, 2))
    with pytest.raises(InputError, match="num_examples is 5"):
        DataConfig(num_examples=5)
    with pytest.raises(InputError, match="max_length is 3"):
        DataConfig(max_length=3)
