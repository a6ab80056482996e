"""Tokenizers and models small enough to build in a test: nothing is downloaded.

Every builder is deterministic from its arguments, so two processes of one test agree.
"""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

LINES = (
    "Question: What is 12 + 34?\nAdd the units, then add the tens: 46.\nAnswer: 46",
    "Question: Which number comes next in 2, 4, 6, 8?\nThe step is 2, so 10.\nAnswer: 10",
    "Question: How many cups are red? There are 7 cups and 5 are blue.\nAnswer: 2",
)
"""The text the tokenizer is trained on; byte-level, so any other text encodes as well."""


def tiny_tokenizer(
    lines: tuple[str, ...] = LINES, vocab_size: int = 320, *, pad: bool = True, eos: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; `<pad>` is id 0 and `<eos>` id 1 where asked for."""
    special = [name for name, wanted in (("<pad>", pad), ("<eos>", eos)) if wanted]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>" if pad else None,
        eos_token="<eos>" if eos else None,
    )


def tiny_llama(
    vocab_size: int,
    *,
    seed: int = 0,
    tied: bool = True,
    max_positions: int = 128,
    width: int = 32,
    heads: tuple[int, int] = (4, 2),
    spread: float = 0.3,
) -> LlamaForCausalLM:
    """A Llama of 2 layers, fp32, eval mode; ``heads`` of queries, and of keys and values.

    Weights are larger than a training start would have them, so that logits differ clearly
    between inputs and greedy decoding has no near-ties; ``spread`` is their standard deviation.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        initializer_range=spread,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_gpt2(vocab_size: int, *, seed: int = 0, max_positions: int = 128) -> GPT2LMHeadModel:
    """A GPT-2 of 2 layers, width 32, 4 heads, learned positions, tied head, fp32, eval mode."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=max_positions,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()
