"""Shapes of the models that distforge makes itself: Llama, small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from distforge.errors import InputError


@dataclass(frozen=True)
class ArchitectureConfig:
    """A Llama-style decoder; the defaults are the embedded champion's (1.3M parameters).

    hidden_size must divide by num_heads into an even head size (rotary positions), and num_heads
    by num_kv_heads. max_position_embeddings is the longest sequence in tokens.
    """

    hidden_size: int = 160
    num_layers: int = 4
    num_heads: int = 5
    num_kv_heads: int = 5
    intermediate_size: int = 432
    max_position_embeddings: int = 512
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        sizes = (
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.num_kv_heads,
            self.intermediate_size,
            self.max_position_embeddings,
        )
        if min(sizes) < 1:
            raise InputError(f"an architecture has a size below 1 in {self}")
        if self.hidden_size % (2 * self.num_heads):
            raise InputError(
                f"hidden_size is {self.hidden_size}; expected an even multiple of num_heads "
                f"({self.num_heads})"
            )
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_heads is {self.num_heads}; expected a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )


def build_model(
    architecture: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> LlamaForCausalLM:
    """A model with random weights in fp32, drawn from ``seed``, for the ids of ``tokenizer``."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=architecture.hidden_size,
            num_hidden_layers=architecture.num_layers,
            num_attention_heads=architecture.num_heads,
            num_key_value_heads=architecture.num_kv_heads,
            intermediate_size=architecture.intermediate_size,
            max_position_embeddings=architecture.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
            tie_word_embeddings=architecture.tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
