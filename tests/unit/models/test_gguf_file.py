"""GGUF files, written by llama.cpp's own package and read back as champions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from distforge.cli import main
from distforge.models.loading import load_champion
from tests.tiny_models import LINES, tiny_llama, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'distforge[gguf]'")

TOKENIZER = tiny_tokenizer()
ROWS = len(TOKENIZER)
INPUT = torch.tensor([TOKENIZER.encode(LINES[0])])
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
END_OF_TURN = 5
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}
FLOATS = {"F32": "float32", "F16": "float16"}


def in_llama_cpp_order(name: str, weight: Tensor) -> Tensor:
    """Its rotary pairs are neighbours, transformers' half a head apart."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0)
    if not heads:
        return weight
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return split.swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model, kind: str, architecture: str = "llama") -> Path:
    """The model as a file whose matrices are of a ``kind``; its norms stay float32."""
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    core = json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(core["vocab"], key=core["vocab"].get))
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (ROWS - 2))
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(END_OF_TURN)
    writer.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        short = name
        for ours, theirs in NAMES.items():
            short = short.replace(ours, theirs)
        values = in_llama_cpp_order(name, weight).numpy()
        if weight.ndim > 1:
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(short, gguf.quants.quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(short, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FLOATS)
def test_an_unquantized_file_keeps_every_weight_and_its_dtype(
    tmp_path: Path, kind: str, tied: bool
) -> None:
    model = tiny_llama(ROWS, tied=tied)
    for parameter in model.parameters():  # not the rotary frequencies, which no file holds
        parameter.data = parameter.data.to(getattr(torch, FLOATS[kind])).float()
    path = write(tmp_path / "tiny.gguf", model, kind)
    assert main(["champion", "import", str(path), "--output", str(tmp_path / "out")]) == 0

    dtype = getattr(torch, FLOATS[kind])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == dtype
    champion = load_champion(str(tmp_path / "out"))
    assert torch.equal(champion.model(INPUT).logits, model(INPUT).logits)


def test_a_quantized_file_becomes_a_champion_in_bfloat16(tmp_path: Path) -> None:
    model = tiny_llama(ROWS)
    path = write(tmp_path / "tiny.gguf", model, "Q8_0")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "another model\'s"}')
    assert main(["champion", "import", str(path), "--output", str(tmp_path / "out")]) == 0

    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.dtype == torch.bfloat16
    q8 = gguf.GGMLQuantizationType.Q8_0
    weight = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    unpacked = gguf.quants.dequantize(gguf.quants.quantize(weight, q8), q8)
    found = back.model.layers[1].mlp.down_proj.weight
    assert torch.equal(found, torch.from_numpy(unpacked).bfloat16())

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)
    assert tokenizer.chat_template == TEMPLATE
    assert len(tokenizer) == ROWS  # and not one more, for an end of text that no row stands for
    for line in LINES:
        assert tokenizer.decode(tokenizer.encode(line)) == line
    record = json.loads((tmp_path / "out" / "champion.json").read_text())
    assert record == {
        "source": "tiny.gguf",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": "llama",
        "name": "tiny",
        "quantization": "Q8_0",
        "dtype": "bfloat16",
    }


def test_every_stop_of_the_file_is_the_models(tmp_path: Path) -> None:
    from distforge.models.gguf_file import read_gguf

    read = read_gguf(write(tmp_path / "tiny.gguf", tiny_llama(ROWS), "F32"))
    assert read.model.generation_config.eos_token_id == [1, END_OF_TURN]


def test_the_dtype_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_llama(ROWS), "Q8_0")
    words = ["champion", "import", str(path), "--output", str(tmp_path / "out")]
    assert main([*words, "--dtype", "float16"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16


def test_what_cannot_be_imported_is_one_sentence(tmp_path: Path, capsys) -> None:
    good = write(tmp_path / "good.gguf", tiny_llama(ROWS), "F32")
    (tmp_path / "text.gguf").write_text("weights, one hopes")
    (tmp_path / "half.gguf").write_bytes(good.read_bytes()[:20_000])
    write(tmp_path / "strange.gguf", tiny_llama(ROWS), "F32", architecture="rwkv9")
    (tmp_path / "taken").mkdir()
    for source, output, words in (
        ("text.gguf", "out", "is not a readable GGUF file"),
        ("half.gguf", "out", "is not a readable GGUF file"),
        ("strange.gguf", "out", "'rwkv9' model"),
        ("absent.gguf", "out", "does not exist"),
        ("good.gguf", "taken", "exists; give another --output"),
    ):
        told = ["champion", "import", str(tmp_path / source), "--output", str(tmp_path / output)]
        assert main(told) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
        assert words in line
        assert not (tmp_path / "out").exists()
