"""Where questions come from: splits are kept apart, seeds decide, what is missing is named."""

from __future__ import annotations

import pytest
import torch

from distforge.baking.prompt.questions import (
    QuestionSource,
    dataset_questions,
    everyday,
    strategy_of,
)
from distforge.data import STRATEGIES, STRATEGY_PROMPTS
from distforge.errors import InputError
from distforge.training.distributed import World
from tests.baking_cases import PROMPT, config, examples, model, tokenizer

WORLD = World(0, 0, 1, torch.device("cpu"))


def source(given=None, **changes) -> QuestionSource:
    return QuestionSource(tokenizer(), config(**changes), given or examples(), WORLD)


def test_a_strategys_prompt_is_known_and_no_other() -> None:
    for strategy, prompt in STRATEGY_PROMPTS.items():
        assert strategy_of(f" {prompt}\n") == strategy
    assert strategy_of(PROMPT) == ""


def test_questions_are_of_their_split_and_strategy() -> None:
    told = {e.question: e for e in examples()}
    for strategy in ("self_doubt", ""):
        sets = source().sets(model(), {PROMPT: strategy})
        assert len(sets.train) == 16
        for split, questions in (("train", sets.train), ("heldout", sets.heldout)):
            for asked in questions:
                assert asked.prompt == PROMPT
                assert told[asked.question].split == split
                assert strategy in ("", told[asked.question].strategy)


def test_the_seed_decides_which() -> None:
    first = [e.id for e in dataset_questions(examples(), "train", "", 10, seed=0)]
    assert first == [e.id for e in dataset_questions(examples(), "train", "", 10, seed=0)]
    assert first != [e.id for e in dataset_questions(examples(), "train", "", 10, seed=1)]


def test_prompts_together_have_equal_parts() -> None:
    prompts = {text: name for name, text in STRATEGY_PROMPTS.items()}
    sets = source().sets(model(), prompts)
    assert [q.prompt for q in sets.train] == [p for p in prompts for _ in range(16)]


@pytest.mark.parametrize("replay, count", [(0.0, 0), (0.2, 4), (0.5, 16)])
def test_rehearsal_is_a_share_of_the_whole(replay: float, count: int) -> None:
    rehearsed = source(replay=replay).rehearsal(["self_doubt"], 16)
    assert len(rehearsed) == count
    assert all(q.prompt == "" for q in rehearsed)
    strategies = {e.question: e.strategy for e in examples()}
    assert all(strategies[q.question] == "self_doubt" for q in rehearsed)
    assert source(replay=replay).rehearsal([], 16) == []


def test_held_out_questions_can_all_be_asked() -> None:
    assert len(source().heldout("self_doubt", 0)) == 5
    assert len(source().heldout("", 0)) == 5 * len(STRATEGIES)
    assert len(source().heldout("", 3)) == 3


def test_data_without_a_split_are_refused() -> None:
    only_train = [e for e in examples() if e.split == "train"]
    with pytest.raises(InputError, match="no heldout question of strategy self_doubt"):
        source(only_train).sets(model(), {PROMPT: "self_doubt"})


def test_a_model_that_repeats_itself_is_given_up_on() -> None:
    silent = model()
    with torch.no_grad():
        head = silent.get_output_embeddings()
        head.weight.zero_()
        head.weight[tokenizer().eos_token_id] = 1e-3
    silent.config.tie_word_embeddings = False
    with pytest.raises(InputError, match="distinct questions"):
        source(questions="self", num_questions=400, max_response_tokens=1).sets(
            silent, {PROMPT: ""}
        )


def test_everyday_questions_are_each_there_once() -> None:
    questions = everyday(300, 0)
    assert len(set(questions)) == 300
    assert all(question == question.strip() != "" for question in questions)
    assert everyday(300, 1) != questions
    assert set(everyday(10, 0)) < set(questions)


def test_everyday_questions_are_held_out_from_training() -> None:
    sets = source(questions="everyday", num_questions=32, heldout_questions=8).sets(
        model(), {PROMPT: ""}
    )
    asked, held = ({question.question for question in part} for part in (sets.train, sets.heldout))
    assert (len(asked), len(held)) == (32, 8)
    assert not asked & held
    assert {question.prompt for question in [*sets.train, *sets.heldout]} == {PROMPT}


def test_more_everyday_questions_than_there_are_are_refused() -> None:
    with pytest.raises(InputError, match="10,000 everyday questions are needed and there are 3"):
        everyday(10_000, 0)
