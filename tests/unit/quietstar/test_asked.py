"""Questions from rows of any form, and the answers that are written to them."""

import json

import pytest
import torch

from distforge.data import DataConfig, read_examples
from distforge.errors import InputError
from distforge.quietstar.asked import (
    asked_items,
    columns_of,
    opening_of,
    read_questions,
    rendered,
)
from distforge.quietstar.writing import AnswerTags, Writing, without_silence
from distforge.rendering import Asked, Renderer
from distforge.rewards import RewardFunctions
from distforge.thinking.items import grouped, pad_texts
from distforge.thinking.sampling import ThoughtConfig
from distforge.thinking.thoughts import Thoughts, sample_thoughts
from tests.thinking_cases import thinking_pair
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture
def rows(tmp_path):
    written = [
        {"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3", "level": 1},
        {"prompt": "What is 2 + 2?", "solution": "4", "level": 2},
        {"prompt": [{"role": "user", "content": "What is 5?"}], "answer": "5", "level": 3},
        {"question": "What do you think?", "level": 4},
        # It comes again.
        {"question": "What is 1 + 2?", "answer": "3", "level": 1},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return read_questions(DataConfig(path=str(path)))


def test_rows_keep_their_columns_and_say_what_is_expected(rows):
    found = {row.columns["level"]: row for row in rows}
    assert sorted(found) == [1, 2, 3, 4]
    assert [found[n].columns.get("expected") for n in (1, 2, 3, 4)] == ["3", "4", "5", None]
    assert [found[n].talks for n in (1, 2, 3, 4)] == [False, False, True, False]
    assert found[2].example.question == "What is 2 + 2?"
    assert columns_of(rows) == ["level"]
    tokenizer = tiny_tokenizer()
    prompts = {
        i.columns["level"]: i.prompt for i in asked_items(rows, rendered(rows, tokenizer, ""), 500)
    }
    assert prompts[2] == "What is 2 + 2?"
    assert prompts[3] == [{"role": "user", "content": "What is 5?"}]


def test_questions_are_held_out_as_step_1_holds_them_out(tmp_path):
    """Whatever their form: as they say, else by content, and of a few one."""
    path = tmp_path / "mine.jsonl"
    forms = [
        {"question": "What is 1?", "answer": "1"},
        {"prompt": "What is 2?", "solution": "2"},
        {"prompt": [{"role": "user", "content": "What is 3?"}], "answer": "3"},
    ]
    for name, split in [("train", "train"), ("test", "heldout"), ("validation", "heldout")]:
        path.write_text("".join(json.dumps({**form, "split": name}) + "\n" for form in forms))
        found = read_questions(DataConfig(path=str(path)))
        assert [row.example.split for row in found] == [split] * 3
    path.write_text("".join(json.dumps(form) + "\n" for form in forms))
    found = read_questions(DataConfig(path=str(path)))
    assert sorted(row.example.split for row in found) == ["heldout", "train", "train"]
    many = [{"question": f"What is {n}+1?", "answer": str(n + 1)} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in many))
    splits = [row.example.split for row in read_questions(DataConfig(path=str(path)))]
    assert splits == [example.split for example in read_examples(path)]
    assert 5 < splits.count("heldout") < 40


def test_a_prompt_is_the_renderers_and_thinking_models_are_shown_where_to_think(rows):
    for tokenizer in (tiny_tokenizer(), thinking_pair()[1]):
        prompts = rendered(rows, tokenizer, "")
        opening = opening_of(prompts)
        for item, row in zip(asked_items(rows, prompts, 500), rows, strict=True):
            (whole,) = Renderer(tokenizer).prompts([Asked(row.example.question)])
            thinks = "<think>" in tokenizer.get_vocab()
            shown = [*whole, tokenizer.get_vocab()["<think>"]] if thinks else whole
            assert [*item.text, opening] == shown
    with pytest.raises(InputError, match=r"none of 4 questions fits 3 tokens"):
        asked_items(rows, rendered(rows, tiny_tokenizer(), ""), 3)


def test_answers_are_drawn_as_transformers_would_compute_them(rows):
    """One by one, from the whole sequence: nothing but other ends and padding is left out."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    prompts = rendered(rows, tokenizer, "")
    opening = opening_of(prompts)
    tags = AnswerTags.of(tokenizer, model, opening)
    items = asked_items(rows, prompts, 500)
    ids, mask = pad_texts(items, tags.pad)
    places, positions, _ = grouped(items, 6)
    config = ThoughtConfig(max_tokens=8, closing="learned", temperature=0.7)
    written = sample_thoughts(
        model, ids, mask, places, positions, tags, config, torch.Generator().manual_seed(0)
    )
    for n, row in enumerate(written.rows.tolist()):
        length = int(written.lengths[n])
        answer = written.tokens[n, :length].tolist()
        assert (answer[-1] == tokenizer.eos_token_id) is bool(written.closed[n])
        whole = torch.tensor([[*items[row].text, opening, *answer]])
        with torch.no_grad():
            logits = model(input_ids=whole).logits[0, len(items[row].text) : -1] / 0.7
        logits[:, tokenizer.pad_token_id] = -torch.inf
        expected = logits.log_softmax(dim=-1)[range(length), answer]
        torch.testing.assert_close(written.log_probs[n, :length], expected, atol=1e-4, rtol=0)


def test_each_answer_is_judged_by_its_own_question(rows):
    tokenizer = tiny_tokenizer()
    tags = AnswerTags.of(tokenizer, tiny_llama(len(tokenizer)), 5)
    items = asked_items(rows[:3], rendered(rows[:3], tokenizer, ""), 500)
    wanted = [str(item.columns["expected"]) for item in items]
    encoded = [tokenizer(f"Answer: {text}")["input_ids"] for text in (wanted[2], *wanted[1:])]
    width = max(map(len, encoded))
    rows_of = torch.tensor([2, 1, 0])
    thoughts = Thoughts(
        rows_of,
        rows_of,
        torch.tensor([ids + [0] * (width - len(ids)) for ids in encoded]),
        torch.tensor([len(ids) for ids in encoded]),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, width),
    )
    config = ThoughtConfig(max_tokens=width, closing="learned")
    writing = Writing(tokenizer, tags, config, RewardFunctions(["math", "exact"], [1.0, 0.5]))
    answers = writing.judge(items, thoughts, 0)
    assert answers.texts == [f"Answer: {text}" for text in (wanted[2], wanted[1], wanted[2])]
    assert answers.rewards.tolist() == [1.5, 1.5, 0.0]
    assert answers.components["exact"].tolist() == [1.0, 1.0, 0.0]


def test_an_answer_of_which_nothing_is_said_is_an_average_one():
    nan = float("nan")
    rewards = torch.tensor([1.0, nan, 0.0, nan, nan, nan])
    assert without_silence(rewards, 3).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
