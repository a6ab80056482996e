"""Exports are read back by plain transformers; what must not be overwritten is not."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from distforge.errors import InputError
from distforge.models.export import export_model
from distforge.models.loading import load_tokenizer
from distforge.rendering import Renderer
from tests.foreign_tokenizers import FOREIGN, rows, stop_ids
from tests.tiny_models import LINES, tiny_gpt2, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = len(TOKENIZER)
MODELS = {
    "llama-tied": lambda: tiny_llama(ROWS),
    "llama-untied": lambda: tiny_llama(ROWS, tied=False),
    "llama-bf16": lambda: tiny_llama(ROWS).bfloat16(),
    "gpt2": lambda: tiny_gpt2(ROWS),
}


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    left, right = dict(one.named_parameters()), dict(other.named_parameters())
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_reads_the_same_model_back(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    own = model.generation_config
    directory = tmp_path / "new" / "model"
    export_model(model, TOKENIZER, directory)

    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert same_weights(loaded, model)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (name != "llama-untied")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for line in LINES:
        assert tokenizer.encode(line) == TOKENIZER.encode(line)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (0, 1)
    assert model.generation_config is own
    assert sorted(os.listdir(tmp_path / "new")) == ["model"]


def test_a_tied_matrix_is_written_once(tmp_path: Path) -> None:
    export_model(MODELS["llama-tied"](), TOKENIZER, tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_a_model_without_habits_is_exported_greedy(tmp_path: Path) -> None:
    model = MODELS["llama-tied"]()
    export_model(model, TOKENIZER, tmp_path / "model")
    prompt = torch.tensor([TOKENIZER.encode(LINES[0][:30])])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    first, second = (loaded.generate(prompt, max_new_tokens=8) for _ in range(2))
    assert torch.equal(first, second)
    assert first[0, prompt.shape[1]] == model(prompt).logits[0, -1].argmax()


@pytest.mark.parametrize("name", FOREIGN)
def test_stops_and_sampling_defaults_come_back(tmp_path: Path, name: str) -> None:
    """Out and in again twice, as from step to step; the tokenizer keeps its end and its padding."""
    tokenizer, model = FOREIGN[name](), tiny_llama(rows(name))
    model.config.eos_token_id = stop_ids(name)[0]
    habits = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    model.generation_config = GenerationConfig(eos_token_id=stop_ids(name), **habits)
    stops = Renderer(tokenizer, model).stops
    assert set(stop_ids(name)) <= set(stops)
    for number in range(2):
        directory = tmp_path / str(number)
        export_model(model, tokenizer, directory)
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = load_tokenizer(directory)
        kept = model.generation_config
        listed = kept.eos_token_id if len(stops) > 1 else [kept.eos_token_id]
        assert tuple(listed) == stops
        assert {key: getattr(kept, key) for key in habits} == habits
        assert Renderer(tokenizer, model).stops == stops
        assert len(tokenizer) == len(FOREIGN[name]())
        assert model.get_input_embeddings().weight.shape[0] == rows(name)
        pad = FOREIGN[name]().pad_token or tokenizer.eos_token
        assert tokenizer.pad_token == pad


def test_what_transformers_would_not_save_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODELS["llama-tied"]()
    model.generation_config = GenerationConfig(
        do_sample=False, temperature=0.5, eos_token_id=[1, 7]
    )
    export_model(model, TOKENIZER, tmp_path / "model")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config
    assert (kept.do_sample, kept.temperature, kept.eos_token_id) == (False, None, [1, 7])
    assert "generation config is not kept" in caplog.text


def test_parameters_that_are_views_of_one_buffer_are_written_whole(tmp_path: Path) -> None:
    """As ZeRO lays them out; safetensors refuses tensors that share storage."""
    model, reference = tiny_llama(ROWS, tied=False), tiny_llama(ROWS, tied=False)
    parameters = list(model.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    for parameter, view in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.data = view.view(parameter.shape)
    export_model(model, TOKENIZER, tmp_path / "model")
    assert same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), reference)
    total = sum(p.numel() for p in parameters) * 4
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < total + 10_000


def test_an_earlier_export_is_replaced_whole(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    export_model(MODELS["llama-untied"](), TOKENIZER, directory)
    (directory / "manifest.json").write_text("[]")
    export_model(MODELS["gpt2"](), TOKENIZER, directory)
    assert same_weights(AutoModelForCausalLM.from_pretrained(directory), MODELS["gpt2"]())
    assert not (directory / "manifest.json").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_to_an_export_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    export_model(MODELS["llama-tied"](), TOKENIZER, tmp_path / "model")
    link.symlink_to("model")
    export_model(MODELS["gpt2"](), TOKENIZER, link)
    assert link.is_symlink()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.model_type == "gpt2"


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    export_model(MODELS["gpt2"](), TOKENIZER, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "foreign",
    [
        ["notes.txt"],
        ["config.json", "notes.txt"],
        ["model.safetensors"],
        ["config.json", "model.safetensors", ".git/HEAD"],
    ],
)
def test_any_other_directory_is_refused_and_left_alone(tmp_path: Path, foreign: list[str]) -> None:
    directory = tmp_path / "mine"
    for name in foreign:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with pytest.raises(InputError, match=r"mine exists and is not an exported model"):
        export_model(MODELS["gpt2"](), TOKENIZER, directory)
    left = [p for p in directory.rglob("*") if p.is_file()]
    assert sorted(p.relative_to(directory).as_posix() for p in left) == sorted(foreign)
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(InputError, match="mine"):
        export_model(MODELS["gpt2"](), TOKENIZER, tmp_path / "mine")
    with pytest.raises(InputError, match=r"cannot write the model to .*under"):
        export_model(MODELS["gpt2"](), TOKENIZER, tmp_path / "mine" / "under")
    assert (tmp_path / "mine").read_text() == "text"


@pytest.mark.parametrize("broken", ["tokenizer", "rename"])
def test_a_failure_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    directory = tmp_path / "model"
    export_model(MODELS["llama-tied"](), TOKENIZER, directory)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if broken == "tokenizer":
        monkeypatch.setattr(type(TOKENIZER), "save_pretrained", full)
    else:
        rename = os.rename
        monkeypatch.setattr(
            os, "rename", lambda a, b: full() if Path(a).name == "new" else rename(a, b)
        )
    with pytest.raises(InputError, match="No space left"):
        export_model(MODELS["gpt2"](), TOKENIZER, directory)
    monkeypatch.undo()
    assert same_weights(AutoModelForCausalLM.from_pretrained(directory), MODELS["llama-tied"]())
    assert os.listdir(tmp_path) == ["model"]


def test_a_model_of_another_kind_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="merge and unload"):
        export_model(nn.Linear(2, 2), TOKENIZER, tmp_path / "model")
    assert not os.listdir(tmp_path)
