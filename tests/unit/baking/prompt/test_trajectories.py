"""Trajectories: who reads what, and what is refused."""

from __future__ import annotations

import pytest
import torch

from distforge.baking.prompt.trajectories import (
    PromptedQuestion,
    Trajectory,
    check_prompt,
    check_room,
    collate_trajectories,
    encode_contexts,
    read_trajectories,
    save_trajectories,
    write_trajectories,
)
from distforge.errors import InputError
from distforge.training.distributed import World
from tests.baking_cases import CONTEXT, PROMPT, model, tokenizer
from tests.tiny_models import tiny_llama

WORLD = World(0, 0, 1, torch.device("cpu"))
QUESTIONS = [PromptedQuestion(PROMPT, "What is 1 + 2?"), PromptedQuestion(PROMPT, "Next in 2, 4?")]
SETTINGS = {"max_new_tokens": 9, "batch_size": 2}


def written(by_teacher: bool, temperature: float = 0.0, seed: int = 0) -> list[Trajectory]:
    return write_trajectories(
        model(),
        tokenizer(),
        QUESTIONS,
        WORLD,
        by_teacher=by_teacher,
        temperature=temperature,
        seed=seed,
        **SETTINGS,
    )


@torch.no_grad()
def argmax_continuation(ids: tuple[int, ...]) -> tuple[int, ...]:
    reader, row = model(), list(ids)
    for _ in range(SETTINGS["max_new_tokens"]):
        row.append(int(reader(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        if row[-1] == tokenizer().eos_token_id:
            break
    return tuple(row[len(ids) :])


@pytest.mark.parametrize("by_teacher", [True, False])
def test_the_writer_reads_its_own_context(by_teacher: bool) -> None:
    for row, question in zip(written(by_teacher), QUESTIONS, strict=True):
        text = tokenizer().decode(row.prompted)
        assert text == f"{PROMPT}\nQuestion: {question.question}\n"
        assert tokenizer().decode(row.plain) == f"Question: {question.question}\n"
        read = row.prompted if by_teacher else row.plain
        assert row.response == argmax_continuation(read)
    assert written(True) != written(False)


def test_sampling_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, again = written(True, 1.0, seed=3), written(True, 1.0, seed=3)
    assert one == again
    assert torch.equal(torch.get_rng_state(), state)
    assert written(True, 1.0, seed=4) != one
    assert written(True, 1e-4, seed=4) == written(True, 0.0)


def test_sampling_follows_the_models_distribution() -> None:
    """First tokens of 4000 samples against the model's own probabilities, all of them in play."""
    reader = tiny_llama(len(tokenizer()))
    for parameter in reader.parameters():
        parameter.data *= 0.3  # a flat distribution: a cut-off to the top 50 would show
    question = PromptedQuestion("", "What is 1 + 2?")
    rows = write_trajectories(
        reader,
        tokenizer(),
        [question] * 4000,
        WORLD,
        by_teacher=False,
        temperature=1.0,
        seed=0,
        max_new_tokens=1,
        batch_size=4000,
    )
    with torch.no_grad():
        logits = reader(input_ids=torch.tensor([rows[0].plain])).logits[0, -1]
    expected = torch.softmax(logits, -1)
    counts = torch.bincount(torch.tensor([r.response[0] for r in rows]), minlength=len(expected))
    outside = torch.ones(len(expected), dtype=torch.bool)
    outside[expected.topk(50).indices] = False
    share, wanted = float(counts[outside].sum()) / 4000, float(expected[outside].sum())
    assert wanted > 0.3
    # Five standard deviations of a binomial share.
    assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / 4000) ** 0.5


def test_responses_end_with_the_end_of_sequence() -> None:
    eos = tokenizer().eos_token_id
    rows = written(True, 1.0, seed=11) + written(False, 1.0, seed=12)
    for row in rows:
        assert eos not in row.response[:-1]
        assert len(row.response) == SETTINGS["max_new_tokens"] or row.response[-1] == eos


def test_columns_line_up() -> None:
    rows = [Trajectory((2, 3, 4, 5), (4, 5), (6, 7)), Trajectory((2, 9), (9,), (8, 8, 1))]
    batch = collate_trajectories(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7], [9, 8, 8, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 7], [-100, 8, 8, 1]]
    assert batch["teacher_input_ids"].tolist() == [[2, 3, 4, 5, 6, 7], [2, 9, 8, 8, 1, 0]]
    assert batch["teacher_labels"].tolist() == [[-100] * 4 + [6, 7], [-100] * 2 + [8, 8, 1, -100]]
    assert batch["teacher_attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert (rows[0].length, rows[0].tokens) == (6, 10)


def test_trajectories_are_read_back(tmp_path) -> None:
    sets = {"train": written(True), "heldout": written(False)}
    save_trajectories(sets, tmp_path / "t.json")
    assert read_trajectories(tmp_path / "t.json") == sets
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize("prompt", ["", "  \n\t "])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        check_prompt(tokenizer(), prompt)


def test_what_a_tokenizer_loses_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "think": 1, "twice": 2, "</s>": 3}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")
    assert check_prompt(words, " think  twice\n") == "think  twice"
    with pytest.raises(InputError, match="cannot encode the prompt 'think thrice'"):
        check_prompt(words, "think thrice")
    assert check_prompt(tokenizer(), "思考 ∀x — émigré 🙂") == "思考 ∀x — émigré 🙂"


def test_what_exceeds_the_context_is_refused() -> None:
    reader, words = model(), tokenizer()
    longest = encode_contexts(words, QUESTIONS)[0][0]
    room = CONTEXT - len(longest)
    check_room(reader, words, QUESTIONS[:1], room)
    with pytest.raises(InputError, match=f"{len(longest)} tokens.*context is {CONTEXT}"):
        check_room(reader, words, QUESTIONS[:1], room + 1)
