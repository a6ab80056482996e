"""Tiny models, and thinking written the slow way: one sequence after another, without a cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from distforge.thinking.mixing import mix_logits
from distforge.thinking.sampling import ThoughtConfig, restricted_logits
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Thoughts
from tests.tiny_models import tiny_gpt2, tiny_llama

VOCAB = 48
TAGS = Tags(open=2, close=3, pad=0, eos=1)
FIRST_WORD = 4

# Largest difference of log-probabilities between two ways to compute them in float32: what the
# design asks for. Sums in another order give up to a half of it on these models.
EXACT = 1e-5

MODELS = {"llama-gqa": tiny_llama, "gpt2": tiny_gpt2}


def tiny_qwen2(vocab_size: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).eval()


# More kinds than `MODELS`: biases in the projections, a head of its own.
ARCHITECTURES = {
    "llama": tiny_llama,
    "llama-untied": lambda vocab: tiny_llama(vocab, tied=False),
    "gpt2": tiny_gpt2,
    "qwen2": tiny_qwen2,
}


def model(name: str = "llama-gqa", implementation: str = "sdpa", **changes):
    """Llama with grouped queries and rotary positions, or GPT-2 with learned ones."""
    built = MODELS[name](VOCAB, **changes)
    built.set_attn_implementation(implementation)
    return built


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(FIRST_WORD, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(texts: list[Tensor], side: str = "right") -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    ids = torch.full((len(texts), width), TAGS.pad)
    mask = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        inside = slice(width - len(text), None) if side == "left" else slice(len(text))
        ids[row, inside], mask[row, inside] = text, 1
    return ids, mask


def logits_alone(lm, ids: list[int]) -> Tensor:
    """(L, V) of one sequence, read whole."""
    return lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def branch_ids(text: Tensor, anchor: int, thoughts: Thoughts, index: int) -> list[int]:
    """The sequence that thought ``index`` stands for, up to its closing tag."""
    content = thoughts.tokens[index, : thoughts.content_lengths[index]].tolist()
    return [*text[: anchor + 1].tolist(), TAGS.open, *content, TAGS.close]


def thought_scores_alone(lm, text: Tensor, anchor: int, thoughts: Thoughts, index: int, config):
    """Log-probabilities of the written tokens of one thought, from a sequence of its own."""
    logits = restricted_logits(
        logits_alone(lm, branch_ids(text, anchor, thoughts, index)), TAGS, config
    )
    count = int(thoughts.lengths[index])
    rows = logits.log_softmax(dim=-1)[anchor + 1 : anchor + 1 + count]
    return rows.gather(-1, thoughts.tokens[index, :count, None])[:, 0]


def target_scores_alone(lm, given: list[int], targets: list[int]) -> Tensor:
    """Log-probabilities of ``targets`` after ``given``, from a sequence of its own."""
    rows = logits_alone(lm, [*given, *targets]).log_softmax(dim=-1)
    rows = rows[len(given) - 1 : len(given) - 1 + len(targets)]
    return rows.gather(-1, torch.tensor(targets)[:, None])[:, 0]


def greedy_thought(lm, ids: list[int], config: ThoughtConfig, tags: Tags = TAGS) -> list[int]:
    """What the model thinks after ``ids``, between the tags."""
    content: list[int] = []
    while len(content) < config.max_tokens:
        logits = logits_alone(lm, [*ids, tags.open, *content])[-1]
        token = int(restricted_logits(logits, tags, config).argmax())
        if token == tags.close:
            break
        content.append(token)
    return content


def greedy_text(model, prompt: list[int], new: int, due, horizon: int, config: ThoughtConfig):
    """Greedy generation with thoughts by ``due(count, logits)``; visible ids and thoughts."""
    text, thoughts, held, thinking = list(prompt), [], 0, []
    for count in range(new):
        (base, hidden) = last_prediction(model.lm, text)
        if due(count, base):
            content = greedy_thought(model.lm, text, config)
            thoughts.append((count, content))
            thinking, held = [*text, TAGS.open, *content, TAGS.close], horizon
        logits = base
        if held:
            logits, hidden_thought = last_prediction(model.lm, thinking)
            if model.mixing_head is not None:
                weight = model.mixing_head(hidden[None], hidden_thought[None])
                logits = mix_logits(base[None], logits[None], weight)[0]
            held -= 1
        logits = logits.clone()
        logits[[TAGS.open, TAGS.close, TAGS.pad]] = -torch.inf
        token = int(logits.argmax())
        if token == TAGS.eos:
            return text[len(prompt) :], thoughts, True
        text.append(token)
        thinking.append(token)
    return text[len(prompt) :], thoughts, False


def last_prediction(lm, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Logits (V,) after ``ids``, and the hidden state (d,) they come from."""
    output = lm(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return output.logits[0, -1], output.hidden_states[-1][0, -1]
