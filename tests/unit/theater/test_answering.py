"""A thinking model asked benchmarks, against one sequence after another."""

import pytest
import torch

from distforge.theater.answering import ThinkingAnswerer
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
from tests.thinking_cases import thinking_pair
from tests.unit.thinking.cases import EXACT, greedy_thought, target_scores_alone

ASKED = ["Question: What is 12 + 34?\n", "Question: How many cups?\n"]
ANSWERS = [[" 46", " 4 and then 6", " a cup"], [" two", " 2"]]
THOUGHT = ThoughtConfig(max_tokens=6, closing="learned")


@pytest.mark.parametrize("batch_size", [1, 2])
@torch.no_grad()
def test_all_answers_to_a_question_follow_its_greedy_thought(batch_size):
    model, tokenizer = thinking_pair()
    tags = Tags.from_tokenizer(tokenizer)
    answerer = ThinkingAnswerer(model, tokenizer, THOUGHT, 8, batch_size)
    found = answerer.log_likelihoods(ASKED, ANSWERS)
    lead = len(tokenizer("\nAnswer:")["input_ids"])
    for asked, answers, nats in zip(ASKED, ANSWERS, found, strict=True):
        ids = tokenizer(asked)["input_ids"]
        content = greedy_thought(model.lm, ids, THOUGHT, tags)
        given = [*ids, tags.open, *content, tags.close]
        for answer, value in zip(answers, nats, strict=True):
            targets = tokenizer(f"\nAnswer:{answer}")["input_ids"]
            scores = target_scores_alone(model.lm, given, targets)[lead:]
            assert value == pytest.approx(float(scores.sum()), abs=EXACT * len(targets))


def test_it_writes_what_the_model_generates_in_the_given_order():
    model, tokenizer = thinking_pair()
    asked = [ASKED[0] * 2, *ASKED]
    written = ThinkingAnswerer(model, tokenizer, THOUGHT, 8, 2).write(asked, ())
    for text, own in zip(asked, written, strict=True):
        greedy = ThoughtConfig(max_tokens=6, closing="learned", greedy=True)
        (alone,) = model.generate(
            [tokenizer(text)["input_ids"]], Tags.from_tokenizer(tokenizer), 8, thought=greedy
        )
        assert own == tokenizer.decode(alone.token_ids)
    assert len(set(written)) > 1


def test_room_is_the_contexts_less_thought_tags_and_answer():
    model, tokenizer = thinking_pair()
    context = model.lm.config.max_position_embeddings
    taken = len(tokenizer(ASKED[0])["input_ids"]) + THOUGHT.max_tokens + 2
    assert ThinkingAnswerer(model, tokenizer, THOUGHT, context - taken, 2).fits(ASKED[0])
    assert not ThinkingAnswerer(model, tokenizer, THOUGHT, context - taken + 1, 2).fits(ASKED[0])
    answerer = ThinkingAnswerer(model, tokenizer, THOUGHT, 8, 2)
    assert answerer.fits(ASKED[0], [" 46"])
    assert not answerer.fits(ASKED[0], [" 46", " 4" * context])
