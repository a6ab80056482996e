"""Small Llama-style models, made from random weights.

`PRESETS["embedded"]` is the champion that two CPU cores can pretrain in minutes;
`PRESETS["25m"]` is the same family at 25M parameters.
"""

import math
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from distforge.errors import InputError, require_in


@dataclass(frozen=True)
class ArchitectureConfig:
    """The shape of a Llama-style causal language model.

    hidden_size: width of the residual stream.
    num_layers: transformer blocks.
    num_heads: query heads; each is hidden_size / num_heads wide, an even number (rotary pairs).
    num_kv_heads: key-value heads; fewer than num_heads is grouped-query attention.
    intermediate_size: width of the gated feed-forward.
    max_position_embeddings: longest sequence, in tokens.
    tie_word_embeddings: one matrix for the input embedding and the LM head.
    rope_theta: base of the rotary frequencies.
    rms_norm_eps: added to the mean square in RMSNorm.

    Raises:
        ValueError: a size below 1, heads that do not divide the width, or key-value heads that do
            not divide the heads.
    """

    hidden_size: int = 160
    num_layers: int = 4
    num_heads: int = 5
    num_kv_heads: int = 5
    intermediate_size: int = 432
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = True
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size")
        for name in (*sizes, "max_position_embeddings"):
            require_in("[1, inf]", **{name: getattr(self, name)})
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size = {self.hidden_size} should be a multiple of 2 * num_heads = "
                f"{2 * self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} should be a multiple of num_kv_heads = "
                f"{self.num_kv_heads}"
            )
        require_in("(0, inf]", rope_theta=self.rope_theta, rms_norm_eps=self.rms_norm_eps)


PRESETS: dict[str, ArchitectureConfig] = {
    "embedded": ArchitectureConfig(),
    "25m": ArchitectureConfig(
        hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=8, intermediate_size=1376
    ),
}


def preset(name: str) -> ArchitectureConfig:
    """The architecture of that name in `PRESETS`; InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"architecture {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def build_model(
    arch: ArchitectureConfig,
    vocab_size: int,
    seed: int,
    *,
    eos_token_id: int,
    pad_token_id: int,
    bos_token_id: int | None = None,
) -> PreTrainedModel:
    """A randomly initialised fp32 model in training mode; the same seed gives the same weights.

    Matrices are normal with std sqrt(2 / (5 d)) ("small init", Nguyen & Salazar 2019, section
    2.2), and those that write into the residual stream a further 1 / sqrt(2 L) smaller (GPT-2,
    section 2.3), so the stream's variance does not grow with depth. The caller's random state
    is left as it was.

    Raises:
        InputError: a token id outside [0, vocab_size).
    """
    ids = {"eos": eos_token_id, "pad": pad_token_id, "bos": bos_token_id}
    for name, token_id in ids.items():
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise InputError(
                f"{name}_token_id = {token_id} should be in [0, {vocab_size}), the vocabulary; "
                "give the id that the tokenizer uses"
            )
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        num_key_value_heads=arch.num_kv_heads,
        max_position_embeddings=arch.max_position_embeddings,
        tie_word_embeddings=arch.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta},
        rms_norm_eps=arch.rms_norm_eps,
        initializer_range=math.sqrt(2 / (5 * arch.hidden_size)),
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * arch.num_layers))
    return model.train()
