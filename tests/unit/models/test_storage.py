"""What dtype weights are stored in, and computed in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from distforge.errors import InputError
from distforge.models import storage
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.thinking.model import ThinkingModel
from tests.tiny_models import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = len(TOKENIZER)


def directory(tmp_path: Path, dtype: torch.dtype) -> Path:
    export_model(tiny_llama(ROWS).to(dtype), TOKENIZER, tmp_path / "given")
    return tmp_path / "given"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_champion_goes_out_as_it_came_in(tmp_path: Path, dtype: torch.dtype) -> None:
    champion = load_champion(str(directory(tmp_path, dtype)))
    for turn in range(2):  # the first export must not change the second one
        out = tmp_path / f"out{turn}"
        export_model(champion.model, TOKENIZER, out)
        assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {dtype}
        assert AutoModelForCausalLM.from_pretrained(out).dtype == dtype
    assert "lm_head.weight" not in load_file(out / "model.safetensors")  # tied, written once


def test_most_elements_decide(tmp_path: Path) -> None:
    save_file(
        {
            "a": torch.zeros(9, dtype=torch.bfloat16),
            "b": torch.zeros(2, 4),
            "c": torch.zeros(3).int(),
        },
        tmp_path / "x.safetensors",
    )
    assert storage.dtype_of_files([tmp_path / "x.safetensors"]) == torch.bfloat16
    assert storage.dtype_of_tensors([torch.zeros(3).half(), torch.zeros(2)]) == torch.float16
    assert storage.dtype_of_tensors([torch.zeros(3).int()]) == torch.float32


def test_a_thinking_model_keeps_the_dtype_of_its_language_model(tmp_path: Path) -> None:
    champion = load_champion(str(directory(tmp_path, torch.bfloat16)))
    export_model(ThinkingModel.wrap(champion.model), TOKENIZER, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    back = ThinkingModel.from_pretrained(tmp_path / "out")
    given = champion.model.get_input_embeddings().weight
    assert torch.equal(back.lm.get_input_embeddings().weight, given)


@pytest.mark.parametrize(
    "stored,gpu,multiplies,expected",
    [
        (torch.bfloat16, False, True, torch.bfloat16),
        (torch.bfloat16, False, False, torch.float32),
        (torch.float16, False, True, torch.float32),
        (torch.float16, True, True, torch.float16),
        (torch.float32, True, True, torch.float32),
    ],
)
def test_auto_is_the_models_own_dtype_where_it_is_computed(
    monkeypatch, stored, gpu, multiplies, expected
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: multiplies)
    monkeypatch.setattr(storage, "cpu_multiplies_bfloat16", lambda: multiplies)
    assert storage.computing_dtype("auto", stored) == expected
    assert storage.computing_dtype("bfloat16", stored) == torch.bfloat16


def test_float16_on_a_cpu_is_refused(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'float16' on a CPU"):
        storage.computing_dtype("float16", torch.float16)
    loaded = load_champion(str(directory(tmp_path, torch.float16)), "bfloat16")
    assert loaded.model.dtype == torch.bfloat16
