"""Batched, cached generation against argmax over whole sequences, one prompt at a time."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GenerationConfig, PreTrainedModel

from distforge.errors import InputError
from distforge.evaluation import generation
from distforge.evaluation.generation import Generation, continue_ids, generate
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.unit.thinking.cases import ARCHITECTURES

TOKENIZER = tiny_tokenizer()
TEXTS = ["Question: 1?\n", "How many cups are red and blue?", "2", "The step is 2, so 10.\n" * 2]
PROMPTS = [TOKENIZER.encode(text) for text in TEXTS]
NEW_TOKENS = 12


def naive(model: PreTrainedModel, ids: list[int], eos: int) -> Generation:
    told: list[int] = []
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(torch.tensor([ids + told]), use_cache=False).logits
        told.append(int(logits[0, -1].argmax()))
        if told[-1] == eos:
            return Generation(TOKENIZER.decode(told[:-1]), tuple(told[:-1]), eos)
    return Generation(TOKENIZER.decode(told), tuple(told), None)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_naive_argmax(make, batch_size: int) -> None:
    model = make(len(TOKENIZER))
    expected = [naive(model, prompt, TOKENIZER.eos_token_id) for prompt in PROMPTS]
    assert generate(model, TOKENIZER, PROMPTS, NEW_TOKENS, batch_size) == expected


@pytest.mark.parametrize("eos", [None, 1, 9, [3, 9, 70]])
@pytest.mark.parametrize("banned", [[], [5, 70]])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_ids_are_those_of_transformers(name, banned, eos, monkeypatch) -> None:
    model = ARCHITECTURES[name](80)
    rows = [[(7 * row + column) % 80 for column in range(2 + row % 5)] for row in range(12)]
    settings = GenerationConfig(
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=eos,
        suppress_tokens=banned or None,
    )
    own = continue_ids(model, rows, settings)
    monkeypatch.setattr(generation, "write_greedily", refuse)
    assert continue_ids(model, rows, settings) == own


def test_what_prompts_begin_with_alike_is_read_once() -> None:
    """The same ids as of each prompt alone, and its beginning goes through the model once."""
    model = tiny_llama(len(TOKENIZER))
    shared = TOKENIZER.encode("Question: How many cups are red?\nAnswer: 2\n\n" * 2)
    prompts = [[*shared, *ids] for ids in PROMPTS]
    alone = [naive(model, prompt, TOKENIZER.eos_token_id) for prompt in prompts]
    read: list[int] = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda _, args, __: read.append(args[0].numel())
    )
    assert generate(model, TOKENIZER, prompts, NEW_TOKENS, 8) == alone
    hook.remove()
    assert read[0] == len(shared)
    assert read[1] == len(PROMPTS) * max(map(len, PROMPTS))


def test_equal_prompts_and_one_that_others_begin_with() -> None:
    model = tiny_llama(len(TOKENIZER))
    prompts = [PROMPTS[3], PROMPTS[3], PROMPTS[3][:-4], [*PROMPTS[3], 7]]
    alone = [naive(model, prompt, TOKENIZER.eos_token_id) for prompt in prompts]
    assert generate(model, TOKENIZER, prompts, NEW_TOKENS, 8) == alone


def test_nothing_is_written_far_behind_what_is_unwanted() -> None:
    model = tiny_llama(len(TOKENIZER))
    whole = generate(model, TOKENIZER, PROMPTS, 64, 4)
    assert min(len(one.token_ids) for one in whole) > 40
    stop = whole[0].text[6:9]
    ended = generate(model, TOKENIZER, PROMPTS, 64, 4, unwanted=(stop, "never there"))
    for one, other in zip(ended, whole, strict=True):
        assert other.text.startswith(one.text)
        assert (stop in other.text) == (len(one.token_ids) < len(other.token_ids))
    assert stop in ended[0].text
    assert len(ended[0].token_ids) <= 24


def test_the_linear_layers_are_themselves_again() -> None:
    model = tiny_llama(len(TOKENIZER))
    generate(model, TOKENIZER, PROMPTS, 2, 4)
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize("shared", [0, 7, 8, 20])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_common_beginning_is_read_once_and_changes_nothing(name, shared, monkeypatch) -> None:
    model = ARCHITECTURES[name](80)
    head = [(5 * column + 2) % 80 for column in range(shared)]
    rows = [head + [(7 * row + column) % 80 for column in range(1 + row % 4)] for row in range(6)]
    settings = GenerationConfig(max_new_tokens=10, pad_token_id=0, eos_token_id=9)
    own = continue_ids(model, [*rows, rows[0]], settings)
    assert own[-1] == own[0]
    monkeypatch.setattr(generation, "write_greedily", refuse)
    assert continue_ids(model, [*rows, rows[0]], settings) == own


def test_sampled_tokens_come_as_often_as_the_model_says() -> None:
    model = tiny_llama(len(TOKENIZER))
    with torch.no_grad():
        likely = model(torch.tensor([PROMPTS[1]])).logits[0, -1].double()
    told = generate(model, TOKENIZER, [PROMPTS[1]] * 3000, 1, 3000, temperature=10.0, seed=5)
    written = [one.stop if one.finished else one.token_ids[0] for one in told]
    counts = torch.bincount(torch.tensor(written), minlength=len(TOKENIZER)).double()
    expected = (likely / 10).softmax(-1) * 3000
    # Tokens from the likeliest on, in groups of about an eighth of the probability.
    order = expected.argsort(descending=True)
    group = (expected[order].cumsum(0) * 8 / 3001).long()
    assert len(group.unique()) > 4
    for number in group.unique():
        wanted, found = expected[order][group == number].sum(), counts[order][group == number].sum()
        assert abs(found - wanted) < 5 * wanted.sqrt()  # five standard deviations


def refuse(*_: object, **__: object) -> None:
    raise InputError("this one cannot branch")


def test_a_model_that_cannot_branch_is_decoded_by_transformers() -> None:
    config = BloomConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    torch.manual_seed(0)
    model = BloomForCausalLM(config).eval()
    expected = [naive(model, prompt, TOKENIZER.eos_token_id) for prompt in PROMPTS]
    assert generate(model, TOKENIZER, PROMPTS, NEW_TOKENS, 3) == expected


def test_stops_at_the_end_of_sequence() -> None:
    """Call the token that the model likes third the end: generations then end at its first use."""
    model = tiny_llama(len(TOKENIZER))
    free = naive(model, PROMPTS[0], TOKENIZER.eos_token_id)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(free.token_ids[2])
    (ended,) = generate(model, tokenizer, PROMPTS[:1], NEW_TOKENS, 1)
    assert ended.finished
    assert ended.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[2])]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_end_that_is_known_ends_a_continuation(temperature: float) -> None:
    """Of tokenizer, model's configurations and template, whichever comes first."""
    model = tiny_llama(len(TOKENIZER))
    free = generate(model, TOKENIZER, PROMPTS, NEW_TOKENS, 4, temperature=temperature)
    tokenizer = tiny_tokenizer()
    third, fifth = free[0].token_ids[2], free[1].token_ids[4]
    turn = tokenizer.convert_ids_to_tokens(free[3].token_ids[3])
    model.generation_config.eos_token_id, model.config.eos_token_id = [1, third], fifth
    tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + turn + "{% endfor %}"
    stops = {1, third, fifth, free[3].token_ids[3]}
    ended = generate(model, tokenizer, PROMPTS, NEW_TOKENS, 4, temperature=temperature)
    for one, whole in zip(ended, free, strict=True):
        found = [index for index in whole.token_ids if index in stops]
        assert one.stop == (found[0] if found else whole.stop)
        length = whole.token_ids.index(one.stop) if found else len(whole.token_ids)
        assert one.token_ids == whole.token_ids[:length]
    assert sum(one.finished for one in ended) >= 3


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_ids_that_no_tokenizer_has_are_never_written(temperature: float) -> None:
    """Rows of a padded vocabulary, which the model likes best."""
    known = len(TOKENIZER)
    model = tiny_llama(known + 40, tied=False)
    model.lm_head.weight.data[known:] *= 4.0
    with torch.no_grad():
        liked = model(torch.tensor([PROMPTS[1]])).logits[0, -1].topk(3).indices
    assert (liked >= known).all()
    written = generate(model, TOKENIZER, PROMPTS, NEW_TOKENS, 4, temperature=temperature)
    assert all(index < known for row in written for index in row.token_ids)
    assert all(row.token_ids for row in written)


def test_the_models_own_habits_do_not_count() -> None:
    model = tiny_llama(len(TOKENIZER))
    plain = generate(model, TOKENIZER, PROMPTS, NEW_TOKENS, 2)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.num_beams = 3
    assert generate(model, TOKENIZER, PROMPTS, NEW_TOKENS, 2) == plain
    assert model.generation_config.num_beams == 3


def test_mode_is_restored_and_progress_told() -> None:
    model = tiny_llama(len(TOKENIZER)).train()
    told = []
    generate(
        model, TOKENIZER, PROMPTS, 2, 3, progress=lambda done, total: told.append((done, total))
    )
    assert model.training
    # Half of a batch's two tokens is half of what it has to write.
    assert told == [(1.5, 4), (3, 4), (3, 4), (3.5, 4), (4, 4), (4, 4)]


def test_context_is_respected() -> None:
    with pytest.raises(InputError, match="context of 128"):
        generate(tiny_llama(len(TOKENIZER)), TOKENIZER, [[5]], 128, 1)
