"""One question, the same ids: in training, sampling, step 2, benchmarks, prompt baking, README."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distforge.baking.prompt.trajectories import PromptedQuestion, encode_contexts
from distforge.data import ReasoningDataset, make_examples
from distforge.data.dataset import IGNORE_INDEX, collate
from distforge.data.free_text import Document, TextConfig
from distforge.data.text import completion_text
from distforge.evaluation import scoring
from distforge.evaluation.benchmarks.plain import PlainAnswerer
from distforge.evaluation.generation import Generation
from distforge.models.export import export_model
from distforge.models.loading import load_tokenizer
from distforge.models.vocabulary import add_thinking_tokens
from distforge.quietstar.items import answer_items, question_items, text_items
from distforge.rendering.thinking_tokens import THINKING_TOKENS
from distforge.theater.answering import ThinkingAnswerer
from distforge.thinking.model import ThinkingModel
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World
from tests.foreign_tokenizers import FOREIGN, rows, stop_ids
from tests.tiny_models import tiny_llama

LENGTH = 4000
ALONE = World(0, 0, 1, torch.device("cpu"))


@cache
def examples():
    return tuple(make_examples(56, 0)[:6])


def taught(name: str):
    """A family's model and tokenizer as step 1 starts from them."""
    tokenizer, model = FOREIGN[name](), tiny_llama(rows(name), max_positions=LENGTH)
    model.config.eos_token_id = model.generation_config.eos_token_id = stop_ids(name)
    add_thinking_tokens(model, tokenizer, THINKING_TOKENS, 0)
    return model, tokenizer


def trained_rows(tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """What training reads of each example, and what it is taught to write."""
    dataset = ReasoningDataset(examples(), tokenizer, LENGTH)
    found = []
    for index in range(len(dataset)):
        ids, labels = dataset[index]["input_ids"], dataset[index]["labels"]
        given = labels == IGNORE_INDEX
        assert torch.equal(ids[~given], labels[~given])
        found.append((ids[given].tolist(), ids[~given].tolist()))
    return found


@pytest.mark.parametrize("name", FOREIGN)
def test_the_readmes_snippet_gives_the_ids_that_training_saw(name: str, tmp_path: Path) -> None:
    """Of the exported tokenizer, read by transformers alone."""
    model, tokenizer = taught(name)
    tokenizer.save_pretrained(tmp_path / "champion")
    tokenizer = load_tokenizer(tmp_path / "champion")
    export_model(model, tokenizer, tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    for example, (given, told) in zip(examples(), trained_rows(tokenizer), strict=True):
        if loaded.chat_template:
            messages = [{"role": "user", "content": example.question}]
            ids = loaded.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).input_ids
        else:
            ids = loaded(f"Question: {example.question}\n", return_tensors="pt").input_ids
        assert ids[0].tolist() == given
        written = loaded.decode(told[:-1])
        wanted = completion_text(example.reasoning, example.answer)
        assert written == wanted.removeprefix("<think>" if name == "r1" else "")


@pytest.mark.parametrize("name", FOREIGN)
def test_questions_are_sampled_from_what_training_saw(name: str, monkeypatch) -> None:
    model, tokenizer = taught(name)
    asked = []

    def written(model, tokenizer, prompts, *_, **__):
        asked.extend(prompts)
        return [Generation("a</think>\nAnswer: 1", (), None) for _ in prompts]

    monkeypatch.setattr(scoring, "generate", written)
    found = scoring.answer_questions(
        model, tokenizer, examples(), ALONE, max_new_tokens=4, batch_size=2
    )
    assert asked == [given for given, _ in trained_rows(tokenizer)]
    assert all(("<think>" in one.text) == (name == "r1") for one in found)
    contexts = encode_contexts(tokenizer, [PromptedQuestion("", e.question) for e in examples()])
    assert [list(plain) for _, plain in contexts] == asked
    assert all(prompted == plain for prompted, plain in contexts)


@pytest.mark.parametrize("name", FOREIGN)
def test_step_2_thinks_where_training_did(name: str) -> None:
    """Text, opening tag, true thought, closing tag and target are the row that was trained on."""
    model, tokenizer = taught(name)
    tags = Tags.from_tokenizer(tokenizer, model=model)
    items = question_items(examples(), tokenizer, LENGTH)
    bare = answer_items(examples(), tokenizer, LENGTH)
    for item, other, (given, told) in zip(items, bare, trained_rows(tokenizer), strict=True):
        assert item.gold is not None
        whole = [*item.text, tags.open, *item.gold, tags.close, *item.targets[0]]
        assert whole == [*given, *told]
        assert item.positions == (len(item.text) - 1,)
        assert (other.text, other.targets) == (item.text, item.targets)
    assert items[0].targets[0][-1] == tags.eos
    assert set(tags.ends) == {tags.eos, tokenizer.eos_token_id, *stop_ids(name)}


@pytest.mark.parametrize("name", FOREIGN)
def test_no_thought_contains_an_end_or_an_id_that_no_tokenizer_has(name: str) -> None:
    model, tokenizer = taught(name)
    tags = Tags.from_tokenizer(tokenizer, model=model)
    assert tags.absent == tuple(range(len(tokenizer), model.config.vocab_size))
    assert {*stop_ids(name), *tags.absent, tags.open, tags.pad} <= set(tags.banned(close=False))
    model.lm_head.weight.data[list(tags.absent)] *= 5.0
    thought = ThoughtConfig(max_tokens=12, closing="learned")
    prompts = [list(item.text) for item in answer_items(examples(), tokenizer, LENGTH)]
    for think in (True, False):
        written = ThinkingModel.wrap(model).generate(
            prompts,
            tags,
            12,
            think=think,
            thought=thought,
            temperature=1.0,
            generator=torch.Generator().manual_seed(0),
        )
        inside = [index for row in written for _, ids in row.thoughts for index in ids]
        outside = [index for row in written for index in row.token_ids]
        assert not {*inside, *outside} & {*stop_ids(name), *tags.absent}
        assert bool(inside) == think


@pytest.mark.parametrize("name", FOREIGN)
def test_benchmarks_are_asked_the_same_way(name: str, monkeypatch) -> None:
    model, tokenizer = taught(name)
    text = "Question: What is 12 + 34?\nAnswer: 46\n\nQuestion: How many cups?\n"
    asked = []

    def written(model, tokenizer, prompts, *_, **__):
        asked.extend(prompts)
        return [Generation("", (), None) for _ in prompts]

    monkeypatch.setattr("distforge.evaluation.benchmarks.plain.generate", written)
    answerer = PlainAnswerer(model, tokenizer, 4, 2)
    answerer.write([text], ())
    if tokenizer.chat_template:
        tokenizer = load_tokenizer_of(tokenizer)
        messages = [{"role": "user", "content": f"{text}Answer:"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    else:
        ids = tokenizer(f"{text}Answer:").input_ids
    assert asked == [ids]
    whole, length = answerer._with_answers(text, [" 7 cups"])
    assert whole[0][:length] == ids
    shown = tokenizer.decode(whole[0][length:])
    assert shown.strip() == "7 cups"
    assert answerer.fits(text, [" 7 cups"])
    nats = answerer.log_likelihoods([text], [[" 7 cups"]])[0][0]
    with torch.no_grad():
        log_probs = model(torch.tensor(whole)).logits[0].log_softmax(dim=-1)
    alone = sum(float(log_probs[i - 1, whole[0][i]]) for i in range(length, len(whole[0])))
    assert nats == pytest.approx(alone, abs=1e-3)


def load_tokenizer_of(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    from distforge.rendering.template import pin_date

    pin_date(tokenizer)
    return tokenizer


@pytest.mark.parametrize("name", ["chatml", "r1", "llama"])
def test_thoughts_about_a_benchmark_open_once(name: str, monkeypatch) -> None:
    model, tokenizer = taught(name)
    seen = []

    def written(prompts, *_, **__):
        seen.extend(prompts)
        return []

    thinker = ThinkingModel.wrap(model)
    monkeypatch.setattr(thinker, "generate", written)
    answerer = ThinkingAnswerer(thinker, tokenizer, ThoughtConfig(max_tokens=4), 4, 2)
    with pytest.raises(ValueError, match="zip"):
        answerer.write(["Question: 7?\n"], ())
    opening = tokenizer.convert_tokens_to_ids("<think>")
    assert opening not in seen[0]
    assert answerer.fits("Question: 7?\n", [" 7"])
    assert len(answerer.log_likelihoods(["Question: 7?\n"], [[" 7", " 8"]])[0]) == 2


@pytest.mark.parametrize("name", FOREIGN)
def test_padding_that_is_an_end_is_learned_where_it_ends_and_ignored_where_it_pads(name) -> None:
    _, tokenizer = taught(name)
    dataset = ReasoningDataset(examples(), tokenizer, LENGTH)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batch = collate([dataset[index] for index in range(len(dataset))], pad)
    for row, length in enumerate(dataset.lengths):
        assert batch["labels"][row, length - 1] == batch["input_ids"][row, length - 1]
        assert batch["labels"][row, length - 1] != IGNORE_INDEX
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
        assert batch["attention_mask"][row].sum() == length


@pytest.mark.parametrize("name", FOREIGN)
def test_pieces_of_free_text_begin_as_the_tokenizer_begins_texts(name: str) -> None:
    _, tokenizer = taught(name)
    text = "The cup is red. <|im_end|> <think>It is blue. " * 20
    pieces = text_items([Document("d", text, False)], tokenizer, TextConfig(tokens=16))
    first = [tokenizer.bos_token_id] if name in ("llama", "llama3", "gemma", "r1") else []
    opening = tokenizer.convert_tokens_to_ids("<think>")
    body = []
    for piece in pieces:
        assert len(piece.text) == 16
        assert list(piece.text[: len(first)]) == first
        body += piece.text[len(first) :]
    assert opening not in body
    assert text.startswith(tokenizer.decode(body).lstrip())
