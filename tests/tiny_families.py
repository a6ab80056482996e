"""A tiny model of each family that people bring, with what is peculiar to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny_models import tiny_gpt2, tiny_llama

CONTEXT = 256
_IDS: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
# Names as most families have them.
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    **_IDS,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}


def gemma(vocab_size: int) -> PreTrainedModel:
    """A configuration of configurations, scaled embeddings, heads wider than the stream, a norm of
    queries and keys with gain 1 + weight, layers with a window, a tower for images beside."""
    text = {
        **_GROUPED,
        "vocab_size": vocab_size,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=vocab_size - 1,
        **_IDS,
    )
    return Gemma3ForConditionalGeneration(config)


def qwen3(vocab_size: int) -> PreTrainedModel:
    """Norms of queries and keys, and more rows than the tokenizer has ids."""
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size + 24, head_dim=16, **_GROUPED))


def gpt_neox(vocab_size: int) -> PreTrainedModel:
    """Fused and interleaved projections, attention beside the feed-forward, an untied head."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocab_size, **_SHAPE))


def phi3(vocab_size: int) -> PreTrainedModel:
    """Fused projections of queries, keys and values, and of gate and up."""
    return Phi3ForCausalLM(Phi3Config(vocab_size=vocab_size, **_GROUPED))


def falcon(vocab_size: int) -> PreTrainedModel:
    """One key and value for all heads, and attention that asks no interface of transformers."""
    config = FalconConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_IDS
    )
    return FalconForCausalLM(config)


def mamba(vocab_size: int) -> PreTrainedModel:
    """No attention at all: states, and convolutions of single channels."""
    config = MambaConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, state_size=4, **_IDS
    )
    return MambaForCausalLM(config)


def mixtral(vocab_size: int) -> PreTrainedModel:
    """Experts, stacked in one parameter, and a router."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=vocab_size, **experts, **_GROUPED))


def qwen2_moe(vocab_size: int) -> PreTrainedModel:
    """Small experts beside one that all tokens go through, behind a gate of its own."""
    config = Qwen2MoeConfig(
        vocab_size=vocab_size,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        decoder_sparse_step=1,
        **_GROUPED,
    )
    return Qwen2MoeForCausalLM(config)


_BUILDERS: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda size: tiny_llama(size, max_positions=CONTEXT),
    "gpt2": lambda size: tiny_gpt2(size, max_positions=CONTEXT),
    "gemma": gemma,
    "qwen3": qwen3,
    "gpt_neox": gpt_neox,
    "phi3": phi3,
    "falcon": falcon,
    "mamba": mamba,
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
}
FAMILIES = tuple(_BUILDERS)


def tiny_family(name: str, vocab_size: int) -> PreTrainedModel:
    """Width 32, two layers, four heads; float32, evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _BUILDERS[name](vocab_size)
        # Larger than a training start, so that greedy decoding has no near-ties.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
