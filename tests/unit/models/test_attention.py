import math

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from distforge.errors import InputError
from distforge.models.attention import AttentionLogits, head_maxima

HEADS = 4
COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def llama(layers: int = 1, kv_heads: int = 2, bias: bool = False) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            **COMMON,
            num_hidden_layers=layers,
            num_key_value_heads=kv_heads,
            attention_bias=bias,
        )
    )


def gpt2(layers: int = 1) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=layers,
            n_head=HEADS,
            n_positions=64,
            initializer_range=0.3,
            scale_attn_by_inverse_layer_idx=True,
        )
    )


def phi3() -> nn.Module:
    return Phi3ForCausalLM(Phi3Config(**COMMON, num_hidden_layers=1, num_key_value_heads=2))


def gpt_neox() -> nn.Module:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, num_hidden_layers=1))


def normed(config_class, model_class) -> nn.Module:
    return model_class(
        config_class(**COMMON, num_hidden_layers=1, num_key_value_heads=2, head_dim=8)
    )


MODELS = {
    "llama-mha": lambda: llama(kv_heads=4),
    "llama-gqa": lambda: llama(kv_heads=2),
    "llama-mqa": lambda: llama(kv_heads=1),
    "llama-bias": lambda: llama(bias=True),
    "gpt2": gpt2,
    "phi3-gqa": phi3,
    "gpt-neox": gpt_neox,
}


def made(build, implementation: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():  # biases start at zero, gains at a constant; neither would be tested
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.set_attn_implementation(implementation)
    return model.eval()


def tokens(seed: int = 1, batch: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def recorded(model: nn.Module, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(**batch)
    recorder.disable()
    return recorder.max_logits()


def single(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    (logits,) = recorded(model, input_ids=batch).values()
    return logits


def median(values: torch.Tensor) -> float:
    """Between the second and the third of four: two heads above it, two below."""
    ordered = values.sort().values
    return float(ordered[1] + ordered[2]) / 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_first_layer_logits_are_those_of_its_projections(implementation):
    # GPT-2 has no rotation: q and k of the first layer follow from two matrix products.
    model = made(gpt2, implementation)
    batch = tokens()
    block = model.transformer.h[0]
    embedded = model.transformer.wte(batch) + model.transformer.wpe.weight[: batch.shape[1]]
    q, k, _ = block.attn.c_attn(block.ln_1(embedded)).split(32, dim=2)
    naive = torch.full((HEADS,), -math.inf)
    for row in range(batch.shape[0]):
        for head in range(HEADS):
            part = slice(8 * head, 8 * head + 8)
            for i in range(batch.shape[1]):
                for j in range(i + 1):
                    logit = (q[row, i, part] @ k[row, j, part]) / math.sqrt(8)
                    naive[head] = max(naive[head], logit.item())
    torch.testing.assert_close(single(model, batch), naive, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_logits_agree_with_eager_attention_weights(name):
    # log softmax differs from the logits by a constant of each row; differences within a row
    # show that the recorded maximum belongs to the model's own attention.
    model = made(MODELS[name], "eager")
    batch = tokens(batch=1, length=2)
    with torch.no_grad():
        (weights,) = model(input_ids=batch, output_attentions=True).attentions
    gap = (weights[0, :, 1, 0] / weights[0, :, 1, 1]).log()
    q, k = captured_queries_and_keys(model, batch)
    logits = (q[0, :, 1:] @ k[0].mT)[:, 0] / math.sqrt(8)
    torch.testing.assert_close(logits[:, 0] - logits[:, 1], gap, rtol=1e-4, atol=1e-4)
    own = (q[0, :, 0] * k[0, :, 0]).sum(-1) / math.sqrt(8)
    expected = torch.maximum(own, logits.amax(dim=1))
    torch.testing.assert_close(single(model, batch), expected, rtol=1e-5, atol=1e-5)


def captured_queries_and_keys(model: nn.Module, batch: torch.Tensor):
    """q and k (B, H, L, d) as the attention function of the only layer receives them."""
    seen = []

    def spy(module, query, key, value, mask, **kwargs):
        repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        seen.append((query, repeated))
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    before = model.config._attn_implementation
    model.config._attn_implementation = "spy"
    with torch.no_grad():
        model(input_ids=batch)
    model.config._attn_implementation = before
    return seen[0]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_does_not_count(implementation, padding):
    model = made(lambda: llama(layers=2), implementation)
    short = tokens(batch=1, length=6)
    # Padding of a loud token: were it counted, it would win.
    pad = torch.full((1, 5), 63)
    with torch.no_grad():
        model.model.embed_tokens.weight[63] *= 20
    ones, zeros = torch.ones_like(short), torch.zeros_like(pad)
    pieces = (pad, short) if padding == "left" else (short, pad)
    masks = (zeros, ones) if padding == "left" else (ones, zeros)
    padded = recorded(
        model, input_ids=torch.cat(pieces, dim=1), attention_mask=torch.cat(masks, dim=1)
    )
    # Rotary logits depend on relative positions alone, so left padding changes nothing.
    alone = recorded(model, input_ids=short)
    for name, logits in alone.items():
        torch.testing.assert_close(padded[name], logits, rtol=1e-4, atol=1e-4)


def test_the_maximum_runs_over_micro_batches():
    model = made(lambda: llama(layers=2))
    first, second = tokens(1), tokens(2)
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=first)
        model(input_ids=second)
    both = recorder.max_logits()
    recorder.disable()
    separate = [recorded(model, input_ids=batch) for batch in (first, second)]
    for name, logits in both.items():
        assert torch.equal(logits, torch.maximum(separate[0][name], separate[1][name]))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("build", [lambda: llama(layers=2), lambda: gpt2(layers=2)])
def test_recording_changes_neither_outputs_nor_gradients(build, implementation):
    model = made(build, implementation).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = tokens()

    def outputs() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        result = model(input_ids=batch, labels=batch)
        result.loss.backward()
        return result.logits.detach(), [p.grad.clone() for p in model.parameters()]

    plain = outputs()
    recorder = AttentionLogits(model)
    recorder.enable()
    measured = outputs()
    recorder.disable()
    assert torch.equal(plain[0], measured[0])
    for expected, actual in zip(plain[1], measured[1], strict=True):
        assert torch.equal(expected, actual)
    other = "sdpa" if implementation == "eager" else "eager"
    model.set_attn_implementation(other)
    torch.testing.assert_close(outputs()[0], measured[0], rtol=1e-5, atol=1e-5)


def test_disabled_the_model_runs_its_own_function_again():
    model = made(llama, "eager")
    recorder = AttentionLogits(model)
    recorder.enable()
    recorder.enable()
    assert model.config._attn_implementation != "eager"
    recorder.disable()
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        model(input_ids=tokens())
    (logits,) = recorder.max_logits().values()
    assert (logits == -math.inf).all()


@pytest.mark.parametrize("name", MODELS)
def test_clipped_heads_land_on_the_threshold_and_others_stay(name):
    model = made(MODELS[name])
    before = single(model, tokens())
    threshold = median(before)
    assert threshold > 0
    state = {key: value.clone() for key, value in model.state_dict().items()}

    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    assert recorder.apply_clip(threshold) == 2

    after = single(model, tokens())
    torch.testing.assert_close(after, before.clamp(max=threshold), rtol=1e-5, atol=1e-5)
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, state[key])
    }
    assert changed
    projections = ("q_proj", "k_proj", "c_attn", "qkv_proj", "query_key_value")
    assert all(any(part in key for part in projections) for key in changed)


def test_rows_of_heads_below_the_threshold_are_bitwise_untouched():
    model = made(lambda: llama(kv_heads=4))
    attention = model.model.layers[0].self_attn
    weights = [attention.q_proj.weight, attention.k_proj.weight]
    before = [weight.detach().clone() for weight in weights]
    logits = single(model, tokens())
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    recorder.apply_clip(median(logits))
    for weight, old in zip(weights, before, strict=True):
        same = [
            torch.equal(weight[8 * h : 8 * h + 8], old[8 * h : 8 * h + 8]) for h in range(HEADS)
        ]
        assert same == (logits <= median(logits)).tolist()


@pytest.mark.parametrize("build", [lambda: llama(layers=3), lambda: gpt2(layers=3)])
def test_clipping_every_layer_in_turn_bounds_a_deep_model(build):
    # Clipping a layer changes the inputs of the next one, so a deep model settles layer by layer.
    model = made(build)
    threshold = min(median(logits) for logits in recorded(model, input_ids=tokens()).values())
    assert threshold > 0
    recorder = AttentionLogits(model)
    for _ in range(3):
        recorder.enable()
        with torch.no_grad():
            model(input_ids=tokens())
        recorder.apply_clip(threshold)
    for logits in recorded(model, input_ids=tokens()).values():
        assert logits.max() <= threshold * (1 + 1e-5)


@pytest.mark.parametrize(
    "config_class,model_class",
    [(Qwen3Config, Qwen3ForCausalLM), (Gemma3TextConfig, Gemma3ForCausalLM)],
)
def test_a_gain_shared_by_all_heads_is_scaled_by_what_the_largest_needs(config_class, model_class):
    model = made(lambda: normed(config_class, model_class))
    before = single(model, tokens())
    threshold = median(before)
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    assert recorder.apply_clip(threshold) == 2
    gamma = threshold / before.max()
    torch.testing.assert_close(single(model, tokens()), before * gamma, rtol=1e-4, atol=1e-5)


def test_a_gain_of_every_head_is_scaled_head_by_head():
    torch.manual_seed(0)
    model = made(
        lambda: Olmo2ForCausalLM(Olmo2Config(**COMMON, num_hidden_layers=1, num_key_value_heads=2))
    )
    before = single(model, tokens())
    threshold = median(before)
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    recorder.apply_clip(threshold)
    torch.testing.assert_close(
        single(model, tokens()), before.clamp(max=threshold), rtol=1e-5, atol=1e-5
    )


def test_ranks_clip_by_the_maximum_of_all():
    model = made(lambda: llama(kv_heads=4))
    before = single(model, tokens())
    other_rank = before * torch.tensor([1.0, 3.0, 0.5, 2.0])

    def all_reduce_max(values: torch.Tensor) -> None:
        assert values.dtype == torch.float32
        torch.maximum(values, other_rank, out=values)

    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    overall = torch.maximum(before, other_rank)
    threshold = float(overall.min()) / 2
    assert recorder.apply_clip(threshold, all_reduce_max) == HEADS
    expected = before * threshold / overall
    torch.testing.assert_close(single(model, tokens()), expected, rtol=1e-5, atol=1e-5)


def test_edit_reaches_a_master_copy():
    model = made(lambda: llama(kv_heads=4)).to(torch.bfloat16)
    masters = {parameter: parameter.detach().float() for parameter in model.parameters()}

    def edit(parameter, in_place):
        in_place(masters[parameter])
        parameter.copy_(masters[parameter])

    attention = model.model.layers[0].self_attn
    before = masters[attention.q_proj.weight].clone()
    logits = single(model, tokens())
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    recorder.apply_clip(median(logits), edit=edit)
    root = (median(logits) / logits).clamp(max=1).sqrt().repeat_interleave(8)[:, None]
    torch.testing.assert_close(masters[attention.q_proj.weight], before * root)
    assert torch.equal(attention.q_proj.weight, masters[attention.q_proj.weight].to(torch.bfloat16))


def test_clipping_without_a_measurement_is_an_error():
    recorder = AttentionLogits(made(llama))
    with pytest.raises(InputError, match="no attention logit was measured"):
        recorder.apply_clip(30.0)
    recorder.enable()
    with pytest.raises(InputError, match="no attention logit was measured"):
        recorder.apply_clip(30.0)


def test_a_measurement_is_used_once():
    model = made(llama)
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    assert recorder.apply_clip(1e6) == 0
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(InputError, match="no attention logit was measured"):
        recorder.apply_clip(1e6)


def test_logits_that_are_not_finite_are_reported_and_left(caplog):
    model = made(lambda: llama(layers=2))
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = math.inf
    before = model.model.layers[1].self_attn.k_proj.weight.detach().clone()
    recorder = AttentionLogits(model)
    recorder.enable()
    with torch.no_grad():
        model(input_ids=tokens())
    recorder.apply_clip(1e6)
    assert "model.layers.1.self_attn: attention logits are not finite" in caplog.text
    assert torch.equal(model.model.layers[1].self_attn.k_proj.weight, before)


def test_models_that_are_not_understood_are_refused():
    with pytest.raises(InputError, match="Sequential has no attention"):
        AttentionLogits(nn.Sequential(nn.Linear(4, 4)))
    model = made(llama)
    model.model.layers[0].self_attn.q_proj = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(InputError, match=r"self_attn\.q_proj is a Sequential"):
        AttentionLogits(model)
    model.model.layers[0].self_attn.q_proj = nn.Linear(32, 64)
    with pytest.raises(InputError, match=r"\(64, 32\) for 4 heads of width 8"):
        AttentionLogits(model)


@pytest.mark.parametrize("shape", [(2, 4, 2, 9, 9), (1, 6, 1, 5, 12), (3, 3, 3, 1, 7)])
def test_blocks_of_queries_give_the_whole_maximum(shape, monkeypatch):
    batch, heads, kv_heads, length, kv_length = shape
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, length, 8, generator=generator)
    key = torch.randn(batch, kv_heads, kv_length, 8, generator=generator)
    mask = torch.rand(batch, 1, length, kv_length, generator=generator) < 0.6
    repeated = key.repeat_interleave(heads // kv_heads, dim=1)
    logits = torch.einsum("bhid,bhjd->bhij", query.double(), repeated.double()) * 0.25
    expected = logits.masked_fill(~mask, -math.inf).amax(dim=(0, 2, 3)).float()
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for budget in (1, 100, 1 << 24):
        monkeypatch.setattr("distforge.models.attention._LOGITS_BUDGET", budget)
        for given in (mask, additive):
            actual = head_maxima(query, key, 0.25, given)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_logits_of_half_precision_are_not_rounded_to_it():
    query = torch.full((1, 1, 1, 8), 1.0078125, dtype=torch.bfloat16)
    key = torch.full((1, 1, 1, 8), 1.0078125, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = head_maxima(query, key, 1.0, None)
    assert logit.item() == 8 * 1.0078125**2
