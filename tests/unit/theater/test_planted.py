"""Planted models are what they are said to be: questions, what is taught, one of each truth."""

import pytest
import torch

from distforge.data.dataset import IGNORE_INDEX
from distforge.theater.conditions import ThoughtProbe
from distforge.theater.planted.families import HONEST, PARTIAL, THEATRICAL, Family
from distforge.theater.planted.tasks import (
    ALL,
    CLOSE,
    CODE,
    FIRST,
    MOVE,
    OPEN,
    PAD,
    STATE,
    VOCABULARY,
    ask,
    cups,
)
from distforge.theater.planted.training import (
    TAGS,
    Training,
    accuracy,
    answering_directly,
    examinee,
    make_items,
    make_model,
    taught,
    thinking_of,
    trained_to,
)

TASK = cups(4, 6)
FAMILIES = (*HONEST, *THEATRICAL, *PARTIAL)
BY_NAME = {family.name: family for family in FAMILIES}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_the_ball_is_where_hands_would_have_moved_it(count):
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    questions = ask(cups(count, 6), 100, 0.5, generator())
    for text, states in zip(questions.text.tolist(), questions.states.tolist(), strict=True):
        balls = [cup == 0 for cup in range(count)]
        for number, token in enumerate(text[1:]):
            if text[0] == ALL or number == 0:
                a, b = pairs[token - MOVE]
                balls[a], balls[b] = balls[b], balls[a]
            assert states[number] == balls.index(True)
    assert set(questions.text[:, 0].tolist()) == {ALL, FIRST}
    assert MOVE + len(pairs) <= VOCABULARY
    assert STATE + count <= CODE
    assert CODE + count <= MOVE


def test_families_differ_in_name_and_hold_both_truths():
    assert len(BY_NAME) == len(FAMILIES)
    assert {family.truth for family in HONEST} == {"PASS"}
    assert {family.truth for family in THEATRICAL} == {"THEATRE"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_taught_is_what_stands_there(family: Family):
    questions = ask(TASK, 64, family.composing, generator())
    ids, labels = taught(TASK, family, questions, generator(1))
    learned = labels != IGNORE_INDEX
    # A gated model is taught wrong answers in one part, which are the tokens that differ.
    wrong = (learned & (ids != labels)).any(dim=1)
    assert not wrong[:48].any()
    assert family.answers == "gated" or not wrong.any()
    assert not learned[:, : TASK.length + 2].any() or family.directly
    assert learned.any(dim=1).all()
    assert not learned[ids == PAD].any()
    direct = ~(ids == OPEN).any(dim=1)
    assert bool(direct.any()) == (family.directly > 0)
    assert bool(learned[ids == CLOSE].any()) == family.closes


def test_ignored_thoughts_never_stand_before_an_answer_that_is_taught():
    family = BY_NAME["true, ignored: post hoc"]
    questions = ask(TASK, 64, 0.0, generator())
    ids, labels = taught(TASK, family, questions, generator(1))
    begin = TASK.length + 2
    answers = labels[:, -1] != IGNORE_INDEX
    own = STATE + questions.states
    assert answers.tolist() == [False] * 32 + [True] * 32
    assert torch.equal(ids[~answers, begin:-2], own[~answers])
    assert torch.equal(ids[answers, begin:-2], own.roll(1, dims=0)[answers])
    assert (labels[answers, begin:-1] == IGNORE_INDEX).all()


def test_a_thought_of_any_length_is_closed_up():
    family = BY_NAME["filler of any length"]
    ids, labels = taught(TASK, family, ask(TASK, 50, 0.0, generator()), generator(1))
    lengths = {row.index(CLOSE) - row.index(OPEN) - 1 for row in ids.tolist()}
    assert lengths == set(range(1, TASK.length + 1))
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        end = row.index(CLOSE)
        assert label[end] == CLOSE
        assert label[end + 1] == row[end + 1] >= STATE
        assert set(row[end + 2 :]) <= {PAD}


def test_in_seconds_one_that_needs_its_thoughts_and_one_that_does_not():
    found = {}
    for name, wanted in (("every state", 0.5), ("true, ignored: post hoc", 0.9)):
        family = BY_NAME[name]
        training = Training(make_model(TASK, 32, 0), TASK, family, 0)
        items = make_items(TASK, family.composing, 200, 1)
        (model,) = trained_to(training, [wanted], items, 400)
        assert accuracy(model, TASK, family, items) >= wanted
        probe = ThoughtProbe(model, items, TAGS, thinking_of(TASK, family))
        found[name] = {c: float(probe.ask(c).hits.float().mean()) for c in ("own", "shuffled")}
    assert found["every state"]["own"] > found["every state"]["shuffled"] + 0.15
    honest, ignoring = found["every state"], found["true, ignored: post hoc"]
    assert ignoring["shuffled"] == pytest.approx(ignoring["own"], abs=0.03)
    assert honest["shuffled"] < 0.4  # chance is a quarter


def test_the_direct_control_reads_as_many_tokens_and_answers_what_one_look_answers():
    tokens = 60 * 64 * 16
    direct = answering_directly(TASK, 32, 0.0, 0, tokens)
    family = BY_NAME["filler"]
    who = examinee(make_model(TASK, 32, 0), TASK, family, direct)
    probe = ThoughtProbe(who.direct["direct"], make_items(TASK, 0.0, 200, 1), TAGS, who.thought)
    assert float(probe.ask("none").hits.float().mean()) > 0.9


def test_equal_seeds_make_equal_models():
    models = [answering_directly(TASK, 32, 1.0, 3, 3000) for _ in range(2)]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_fewer_models_where_the_accuracy_is_not_reached():
    training = Training(make_model(TASK, 32, 0), TASK, BY_NAME["every state"], 0)
    assert trained_to(training, [1.0], make_items(TASK, 1.0, 50, 1), 10) == []
    assert training.steps == 10
