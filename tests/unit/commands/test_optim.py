"""``distforge optim explain`` against counted shapes and the optimizer that is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig

from distforge.cli import main
from distforge.commands.optim import ParameterRow, explain_parameters
from distforge.optim import (
    AdamWConfig,
    MuonGrokfastConfig,
    OptimizerConfig,
    build_optimizer,
    split_parameters,
)
from tests.tiny_models import tiny_gpt2, tiny_llama

BAKING = OptimizerConfig()


def by_pattern(rows: list[ParameterRow]) -> dict[str, ParameterRow]:
    assert len({row.pattern for row in rows}) == len(rows)
    return {row.pattern: row for row in rows}


def test_llama_in_its_order_with_layers_collapsed() -> None:
    # Width 32, 4 query heads over 2 key heads of 8, feed-forward 64, 2 layers, head tied.
    table = [
        (row.pattern, row.count, row.shape, row.role.algorithm, row.weight_decay, row.role.reason)
        for row in explain_parameters(tiny_llama(64), BAKING)
    ]
    layer, hidden = "model.layers.*.", "hidden matrix"
    assert table == [
        ("model.embed_tokens.weight", 1, (64, 32), "adamw", 0.01, "embedding and head"),
        (layer + "self_attn.q_proj.weight", 2, (32, 32), "muon", 0.01, hidden),
        (layer + "self_attn.k_proj.weight", 2, (16, 32), "muon", 0.01, hidden),
        (layer + "self_attn.v_proj.weight", 2, (16, 32), "muon", 0.01, hidden),
        (layer + "self_attn.o_proj.weight", 2, (32, 32), "muon", 0.01, hidden),
        (layer + "mlp.gate_proj.weight", 2, (64, 32), "muon", 0.01, hidden),
        (layer + "mlp.up_proj.weight", 2, (64, 32), "muon", 0.01, hidden),
        (layer + "mlp.down_proj.weight", 2, (32, 64), "muon", 0.01, hidden),
        (layer + "input_layernorm.weight", 2, (32,), "adamw", 0.0, "vector"),
        (layer + "post_attention_layernorm.weight", 2, (32,), "adamw", 0.0, "vector"),
        ("model.norm.weight", 1, (32,), "adamw", 0.0, "vector"),
    ]


def test_ties_fused_projections_and_transposed_storage() -> None:
    rows = by_pattern(explain_parameters(tiny_gpt2(64), BAKING))
    assert rows["transformer.wte.weight"].aliases == ("lm_head.weight",)
    assert rows["transformer.wpe.weight"].role.reason == "embedding"
    fused = rows["transformer.h.*.attn.c_attn.weight"]
    assert (fused.role.layout, fused.role.transposed, fused.matrices) == (
        "fused_qkv",
        True,
        (3, 32, 32),
    )
    assert fused.role.reason == "fused query, key and value"
    assert rows["transformer.h.*.mlp.c_fc.weight"].matrices == (1, 32, 128)
    assert rows["transformer.h.*.mlp.c_fc.bias"].matrices is None


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16)])
        self.conv = nn.Conv2d(3, 8, 5)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.experts = nn.Parameter(nn.init.ones_(nn.Linear(4, 8).weight)[None].repeat(5, 1, 1))
        self.head = nn.Linear(8, 4, bias=False)


def test_shapes_tell_layers_of_one_name_apart_and_each_rule_is_named() -> None:
    rows = explain_parameters(Mixed(), BAKING)
    assert [
        (row.pattern, row.count, row.shape)
        for row in rows
        if row.pattern.startswith("blocks") and "weight" in row.pattern
    ] == [("blocks.*.weight", 2, (8, 8)), ("blocks.2.weight", 1, (16, 8))]
    named = {row.pattern: (row.role.reason, row.matrices) for row in rows}
    assert named["conv.weight"] == ("convolution", (1, 8, 75))
    assert named["depthwise.weight"] == ("grouped convolution", None)
    assert named["experts"] == ("stack of hidden matrices", (5, 8, 4))
    assert named["head.weight"] == ("named as a table or head", None)


def test_patterns_are_the_reason_only_where_they_changed_something() -> None:
    muon = MuonGrokfastConfig(
        adamw_patterns=("*.q_proj.weight", "*.norm.weight"), muon_patterns=("*.embed_tokens.*",)
    )
    rows = by_pattern(explain_parameters(tiny_llama(64), OptimizerConfig(muon_grokfast=muon)))
    query, table = rows["model.layers.*.self_attn.q_proj.weight"], rows["model.embed_tokens.weight"]
    assert (query.role.algorithm, query.role.reason) == ("adamw", "adamw_patterns: *.q_proj.weight")
    assert (table.role.algorithm, table.role.reason) == ("muon", "muon_patterns: *.embed_tokens.*")
    assert rows["model.norm.weight"].role.reason == "vector"


@pytest.mark.parametrize(
    "config",
    [
        BAKING,
        OptimizerConfig(muon_grokfast=MuonGrokfastConfig(grokfast_lambda=0.0)),
        OptimizerConfig(muon_grokfast=MuonGrokfastConfig(grokfast_on_adamw=True)),
        OptimizerConfig(
            muon_grokfast=MuonGrokfastConfig(grokfast_lambda=0.0, grokfast_on_adamw=True)
        ),
        OptimizerConfig(name="adamw", adamw=AdamWConfig(weight_decay=0.3)),
    ],
)
def test_state_and_decay_are_those_of_the_optimizer_that_is_built(config: OptimizerConfig) -> None:
    model = tiny_gpt2(64)
    rows = explain_parameters(model, config)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    buffers = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step"
    ]
    assert sum(row.state_bytes for row in rows) == sum(
        b.numel() * b.element_size() for b in buffers
    )
    assert sum(row.elements for row in rows) == sum(p.numel() for p in model.parameters())
    decayed = {g["weight_decay"]: 0 for g in optimizer.param_groups}
    for group in optimizer.param_groups:
        decayed[group["weight_decay"]] += len(group["params"])
    explained = dict.fromkeys(decayed, 0)
    for row in rows:
        explained[row.weight_decay] += row.count
    assert explained == decayed


def test_reasons_make_no_parameter_groups() -> None:
    groups = split_parameters(tiny_gpt2(64), MuonGrokfastConfig.baking())
    # Muon: fused and transposed, plain and transposed; AdamW: tables, vectors.
    assert len(groups) == 4


def test_a_configuration_alone_explains_a_model_too_large_for_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    hidden, layers, width, vocabulary = 8192, 80, 28672, 128256
    LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=width,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    ).save_pretrained(tmp_path)
    assert main(["optim", "explain", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    muon = layers * (2 * hidden * hidden + 2 * hidden * hidden // 8 + 3 * hidden * width)
    adamw = 2 * vocabulary * hidden + (2 * layers + 1) * hidden
    assert f"{muon:,} parameters" in output
    assert f"{adamw:,} parameters" in output
    assert f"{8 * (muon + adamw):,} bytes" in output
    assert "model.layers.*.mlp.up_proj.weight ×80" in output


def test_the_configuration_file_and_the_command_line_are_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64).save_pretrained(tmp_path / "model")
    run = tmp_path / "run.toml"
    run.write_text(
        f'[champion]\npath = "{tmp_path / "model"}"\n'
        '[optimizer.muon_grokfast]\nadamw_patterns = ["*.c_fc.weight"]\nweight_decay = 0.5\n'
    )
    assert main(["optim", "explain", "--config", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (fully_connected,) = [line for line in lines if "mlp.c_fc.weight ×3" in line]
    for expected in ("32×128", "adamw", "0.5", "adamw_patterns: *.c_fc.weight"):
        assert expected in fully_connected
    (attention,) = [line for line in lines if "attn.c_attn.weight ×3" in line]
    assert "fused_qkv 3 of 32×32, transposed" in attention
    override = ["--optimizer.muon-grokfast.adamw-patterns", "*.h.1.attn.c_attn.weight"]
    assert main(["optim", "explain", str(tmp_path / "model"), "--config", str(run), *override]) == 0
    output = capsys.readouterr().out
    assert "transformer.h.1.attn.c_attn.weight " in output
    assert "attn.c_attn.weight ×2" in output
    assert "adamw_patterns: *.c_fc.weight" not in output


@pytest.mark.parametrize(
    "files,words,message",
    [
        ({}, ["nothing/here"], "nothing/here"),
        ({"weights.txt": ""}, ["."], "has no config.json"),
        ({"config.json": "{"}, ["."], "not readable as JSON"),
        ({"config.json": '{"model_type": "abacus"}'}, ["."], "abacus"),
        ({"config.json": '{"hidden_size": 8}'}, ["config.json"], "model_type"),
        ({"config.json": '{"model_type": "vit"}'}, ["."], "causal language model"),
        (
            {"config.json": '{"model_type": "gpt2", "attn_implementation": "someone/kernel"}'},
            ["."],
            "code on the hub",
        ),
        (
            {"config.json": '{"model_type": "gpt2"}'},
            [".", "--optimizer.muon-grokfast.muon-patterns", "*.nothing"],
            "matches no trainable parameter",
        ),
        (
            {"config.json": '{"model_type": "gpt2"}', "bad.toml": "[optimizers]\n"},
            [".", "--config", "bad.toml"],
            "did you mean optimizer?",
        ),
    ],
)
def test_bad_input_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    files: dict[str, str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert main(["optim", "explain", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_help(capsys: pytest.CaptureFixture) -> None:
    assert main(["optim", "explain", "--help"]) == 0
    output = capsys.readouterr().out
    assert "MODEL" in output
    assert "--optimizer.muon-grokfast.adamw-patterns" in output
