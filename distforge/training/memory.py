"""How much memory a training step needs, before it is tried.

With P parameters, W ranks, b fp32 ``optimizer_buffers_per_parameter`` (2 for AdamW, 1 to 2 for
MuonGrokfast), and bytes e = 4; float16 above stage 0, where weights are halved, has e = 2:

================  =======================  =========  =================
backend           weights                  gradients  optimizer
================  =======================  =========  =================
plain or stage 0  4 P                      4 P        4 b P
stage 1           e P                      e P        4 (2 + b) P / W
stage 2           e P                      e P / W    4 (2 + b) P / W
stage 3           e (P / W + min(P, 1e9))  e P / W    4 (2 + b) P / W
================  =======================  =========  =================

Where 16 bits are computed over fp32 weights, autocast's copies add 2 P to the weights. The 2
are fp32 master weights and the fp32 gradients of the update; stage 3 has no masters when its
weights are fp32 on the device, so 1 there. Stage 3 shards the weights, yet DeepSpeed keeps up
to 1e9 gathered elements alive, so a small model is whole again while it computes. With
``offload_optimizer`` the optimizer's part lies in "host", which ``total`` leaves out.
(Rajbhandari et al. 2020, "ZeRO", section 3, with our buffers for Adam's.)

Activations of T = ``micro_batch_tokens`` (padding included) in N layers of width h, MLP width f
(of all experts that a token goes through) and H heads, counted in a Llama block with fused
attention: three tensors of each norm (6 h, in fp32), queries and output (2 a, h unless heads are
wider), keys and values (2 k, of the heads that are stored), gate, up, activated gate and product
(4 f), the softmax's fp32 normaliser (H) and an attention mask of ``sequence_length``; a norm at
the end.
With ``activation_checkpointing``: h for each layer and one layer whole. Attention that is not
fused (on a CPU: any with dropout) keeps its scores besides, H times ``sequence_length``
three times, which is not counted.

Logits are the bound that every token is a target: logits, their log-softmax and its gradient,
12 bytes for each of T times ``vocab_size``; examples with a long question need less. With
``activation_checkpointing`` they are gone when a layer is computed again, so only what they take
beyond one layer is added.

An adapter of rank r on every linear layer but the head has A = r times the sum of their inputs and
outputs as parameters. Gradients and optimizer are then those of A alone, weights P + A, and each of
a layer's seven r more activations a token. Between steps a copy with the adapter merged is made for
who samples: where it takes more than activations and logits, which are gone then, "merging" is what
more.

Buckets are ZeRO's buffer for reducing gradients: e times 5e7 from stage 1 on, however small
the model. The scratch of the optimizer's own step and the allocator's fragmentation are not
counted.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from distforge.training.deepspeed_config import BUCKET_ELEMENTS
from distforge.training.engine_config import EngineConfig

_FLOAT32 = 4
# DeepSpeed's default for stage 3: gathered weights up to this many elements are not released.
_STAGE3_MAX_LIVE = 1_000_000_000


def estimate_memory(
    num_parameters: int,
    config: EngineConfig,
    dtype: str,
    world_size: int,
    optimizer_buffers_per_parameter: float,
    micro_batch_tokens: int,
    hidden_size: int,
    num_layers: int,
    intermediate_size: int,
    vocab_size: int,
    num_heads: int,
    sequence_length: int,
    attention_size: int | None = None,
    kv_size: int | None = None,
    frozen_copies: int = 0,
    adapter_rank: int = 0,
) -> dict[str, int]:
    """Bytes on each rank's device at the peak of a step, by what they hold.

    How each is estimated is told at the top of this module.

    Returns:
        "weights", "gradients", "optimizer", "activations", "logits", "buckets", "frozen" (fp32
        copies of the model that are not trained), "merging", their "total", and "host".
    """
    low = _FLOAT32 if dtype == "float32" else 2
    element = low if config.halves_weights(dtype) else _FLOAT32
    queries = hidden_size if attention_size is None else attention_size
    keys = queries if kv_size is None else kv_size
    ends = 7 * hidden_size + 2 * queries + 2 * keys + 3 * intermediate_size
    adapter = adapter_rank * num_layers * ends
    weights, gradients, optimizer = _model_state(
        num_parameters + adapter,
        adapter or num_parameters,
        config,
        low,
        config.halves_weights(dtype),
        world_size,
        optimizer_buffers_per_parameter,
    )
    norm = 3 * hidden_size * _FLOAT32
    attention = (2 * queries + 2 * keys + sequence_length) * low + num_heads * _FLOAT32
    per_layer = 2 * norm + attention + (4 * intermediate_size + 7 * adapter_rank) * low
    again = config.activation_checkpointing
    layers = num_layers * hidden_size * low + per_layer if again else num_layers * per_layer
    result = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 0 if config.offload_optimizer else optimizer,
        "activations": micro_batch_tokens * (layers + norm),
        "logits": micro_batch_tokens * max(0, 12 * vocab_size - again * per_layer),
        "buckets": element * BUCKET_ELEMENTS if config.zero_stage else 0,
        "frozen": _FLOAT32 * num_parameters * frozen_copies,
    }
    merged = _FLOAT32 * (num_parameters + adapter) if adapter else 0
    result["merging"] = max(0, merged - result["activations"] - result["logits"])
    result["total"] = sum(result.values())
    result["host"] = optimizer if config.offload_optimizer else 0
    return result


def _model_state(
    parameters: int,
    trained: int,
    config: EngineConfig,
    low: int,
    halved: bool,
    world_size: int,
    buffers: float,
) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer; the table above, row by row."""
    full, shard = parameters, -(-trained // world_size)
    size = low if halved else _FLOAT32
    autocast = 0 if low == size else low * full
    if config.zero_stage == 0:
        return size * full + autocast, size * trained, round(_FLOAT32 * buffers * trained)
    own = -(-full // world_size)
    live = own + min(full, _STAGE3_MAX_LIVE) if config.zero_stage == 3 else full
    gradients = size * (trained if config.zero_stage == 1 else shard)
    aliased = config.zero_stage == 3 and not halved and not config.offload_optimizer
    extra = 1 if aliased else 2
    return size * live + autocast, gradients, round(_FLOAT32 * (extra + buffers) * shard)


def shape_of(config: PretrainedConfig) -> dict[str, int]:
    """The shape of a transformers model, as `estimate_memory` asks for it."""
    text: Any = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 0  # a state-space model has none
    head_size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return {
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "intermediate_size": _feed_forward_size(text),
        "num_heads": heads,
        "vocab_size": text.vocab_size,
        "attention_size": heads * head_size,
        "kv_size": kv_heads * head_size,
    }


def _feed_forward_size(text: Any) -> int:
    """What one token goes through; of experts, those that it is sent to and those all share."""
    # GPT-2 leaves it unset and means four times the width.
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    chosen = getattr(text, "num_experts_per_tok", None)
    if not chosen:
        return int(dense)
    one = getattr(text, "moe_intermediate_size", None) or dense
    return int(chosen * one + (getattr(text, "shared_expert_intermediate_size", None) or 0))
