"""Thinking tokens: one visible id each, rows drawn like their neighbours, nothing else touched."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from distforge.errors import InputError
from distforge.models.vocabulary import add_thinking_tokens
from tests.tiny_models import LINES, tiny_gpt2, tiny_llama, tiny_tokenizer

TOKENS = ("<think>", "</think>", "<step>", "<reason>", "<mece>", "<falsify>", "<expert>", "<doubt>")
SIZE = len(tiny_tokenizer())
MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama-tied": tiny_llama,
    "llama-untied": lambda rows: tiny_llama(rows, tied=False),
    "gpt2": tiny_gpt2,
}


def matrices(model: PreTrainedModel) -> list[Tensor]:
    """Input embedding and output head: the same matrix where they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight.detach() for module in modules]


def spread_out(model: PreTrainedModel, rows: int) -> None:
    """Give each dimension a mean and spread of its own, so that a pooled draw would show."""
    for weight in {id(w): w for w in matrices(model)}.values():
        width = weight.shape[1]
        torch.manual_seed(7)
        weight[:rows] = torch.randn(rows, width) * torch.linspace(0.1, 2, width)
        weight[:rows] += torch.linspace(-5, 5, width)
        weight[rows:] = 1e3  # padding must count neither as existing nor as initialised


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding", [0, 3, 20])
def test_rows_are_added_where_needed_and_only_there(name: str, padding: int) -> None:
    tokenizer, model = tiny_tokenizer(), MODELS[name](SIZE + padding)
    spread_out(model, SIZE)
    before = [weight.clone() for weight in matrices(model)]
    ids = add_thinking_tokens(model, tokenizer, TOKENS, seed=0)

    assert ids == list(range(SIZE, SIZE + 8))
    rows = max(SIZE + padding, SIZE + 8)
    assert model.config.vocab_size == rows
    for old, new in zip(before, matrices(model), strict=True):
        assert new.shape == (rows, old.shape[1])
        assert torch.equal(new[:SIZE], old[:SIZE])
        assert torch.equal(new[SIZE + 8 :], old[SIZE + 8 :])
        assert new[ids].abs().max() < 20  # no free row kept its padding value
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (head.weight is embedding.weight) == (name != "llama-untied")
    if name == "llama-untied":
        assert not torch.equal(*(weight[ids] for weight in matrices(model)))
    assert model(torch.tensor([ids])).logits.shape == (1, 8, rows)


@pytest.mark.parametrize("name", MODELS)
def test_rows_have_the_mean_and_spread_of_each_dimension(name: str) -> None:
    model = MODELS[name](SIZE)
    spread_out(model, SIZE)
    old = [weight.clone() for weight in matrices(model)]
    many = [f"<t{i}>" for i in range(2000)]
    ids = add_thinking_tokens(model, tiny_tokenizer(), many, seed=3)
    for before, after in zip(old, matrices(model), strict=True):
        mean, std = before.mean(dim=0), before.std(dim=0, correction=0)
        # Of 2000 draws the mean errs by std/45 and the spread by std/63: five of these are allowed.
        assert ((after[ids].mean(dim=0) - mean).abs() < std * 5 / 45).all()
        assert ((after[ids].std(dim=0) - std).abs() < std * 5 / 63).all()


def test_the_seed_decides_the_rows() -> None:
    def drawn(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        model = tiny_llama(SIZE)
        ids = add_thinking_tokens(model, tiny_tokenizer(), TOKENS, seed)
        return matrices(model)[0][ids]

    assert torch.equal(drawn(0, noise=1), drawn(0, noise=2))
    assert not torch.equal(drawn(0, noise=1), drawn(1, noise=1))


def test_bf16_stays_bf16() -> None:
    model = tiny_llama(SIZE, tied=False).bfloat16()
    ids = add_thinking_tokens(model, tiny_tokenizer(), TOKENS, seed=0)
    assert all(w.dtype == torch.bfloat16 and w[ids].isfinite().all() for w in matrices(model))


@pytest.mark.parametrize("name", MODELS)
def test_tokens_that_are_there_are_left_alone(name: str, tmp_path: Path) -> None:
    tokenizer, model = tiny_tokenizer(), MODELS[name](SIZE)
    ids = add_thinking_tokens(model, tokenizer, TOKENS, seed=0)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert add_thinking_tokens(model, tokenizer, TOKENS, seed=1) == ids
    assert len(tokenizer) == SIZE + 8
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_some_there_and_some_not() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_llama(SIZE + 3)
    first = add_thinking_tokens(model, tokenizer, TOKENS[2:4], seed=0)
    kept = matrices(model)[0][first].clone()
    ids = add_thinking_tokens(model, tokenizer, TOKENS, seed=0)
    assert ids[2:4] == first
    assert torch.equal(matrices(model)[0][first], kept)
    assert len(set(ids)) == 8


def test_tokens_without_rows_get_rows() -> None:
    """A tokenizer extended before, with a model that was not."""
    tokenizer, model = tiny_tokenizer(), tiny_llama(SIZE, tied=False)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TOKENS])
    spread_out(model, SIZE)
    ids = add_thinking_tokens(model, tokenizer, TOKENS, seed=0)
    for weight in matrices(model):
        assert weight.shape[0] == SIZE + 8
        # Dimension 0 has mean -5 and spread 0.1, unlike any initialisation by transformers.
        assert ((weight[ids, 0] + 5).abs() < 1).all()


def test_a_word_of_the_vocabulary_becomes_whole_and_keeps_its_row() -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "<step>": 1, "a": 2, "</s>": 3}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")
    assert tokenizer.encode("<step>") != [1]
    model = tiny_llama(4)
    before = matrices(model)[0].clone()
    assert add_thinking_tokens(model, tokenizer, ["<step>"], seed=0) == [1]
    assert tokenizer.encode("a<step>a") == [2, 1, 2]
    assert torch.equal(matrices(model)[0], before)


def test_text_with_tokens_encodes_to_their_ids_and_decodes_to_itself() -> None:
    tokenizer = tiny_tokenizer()
    ids = add_thinking_tokens(tiny_llama(SIZE), tokenizer, TOKENS, seed=0)
    for token, index in zip(TOKENS, ids, strict=True):
        text = f"12{token}3 {token}\n{token}{token} x"
        encoded = tokenizer.encode(text)
        assert encoded.count(index) == 4
        assert tokenizer.decode(encoded, skip_special_tokens=True) == text
    for line in LINES:
        assert tokenizer.encode(line) == tiny_tokenizer().encode(line)


def test_a_head_with_a_bias() -> None:
    config = GPTJConfig(vocab_size=SIZE, n_embd=32, n_layer=1, n_head=4, rotary_dim=4)
    model = GPTJForCausalLM(config)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.bias, mean=50.0)
    ids = add_thinking_tokens(model, tiny_tokenizer(), TOKENS, seed=0)
    bias = model.get_output_embeddings().bias
    assert bias.shape == (SIZE + 8,)
    assert ((bias[ids] - 50).abs() < 10).all()


@pytest.mark.parametrize(
    "fault",
    [
        AddedToken("<step>", special=True),
        AddedToken("a<step>", normalized=False),
        AddedToken("<step>", single_word=True),
    ],
    ids=["hidden", "swallowed", "not-inside-words"],
)
def test_a_token_that_cannot_be_one_visible_id_is_refused(fault: AddedToken) -> None:
    tokenizer, model = tiny_tokenizer(), tiny_llama(SIZE)
    tokenizer.add_tokens([fault], special_tokens=fault.special)
    with pytest.raises(InputError, match=r"'<step>' .* one id that decoding shows"):
        add_thinking_tokens(model, tokenizer, TOKENS, seed=0)
    assert matrices(model)[0].shape[0] == SIZE
