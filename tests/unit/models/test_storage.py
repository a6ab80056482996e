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
from tests.tiny_families import FAMILIES, tiny_family
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


def test_one_dtype_is_that_of_all_fractions(tmp_path: Path) -> None:
    def of(**tensors: torch.Tensor) -> torch.dtype:
        save_file(tensors, tmp_path / "x.safetensors")
        return storage.only_dtype_of_files([tmp_path / "x.safetensors"])

    half, ids, mask = torch.zeros(9, dtype=torch.bfloat16), torch.zeros(2).int(), torch.ones(1) > 0
    assert of(a=half, b=ids, c=mask) == torch.bfloat16
    for other in (torch.zeros(1), torch.zeros(1).double(), torch.zeros(1).half()):
        assert of(a=half, b=other) == torch.float32
    assert of(a=torch.zeros(2).double()) == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_as_stored_a_champion_is_the_same_once_it_is_float32(tmp_path: Path, family: str) -> None:
    """Its buffers too. In the meantime matrices of layers are as in the files, but for Gemma, whose
    scale of embeddings would be rounded to their dtype."""
    given = tmp_path / "given"
    export_model(tiny_family(family, ROWS).bfloat16(), TOKENIZER, given)
    whole = load_champion(str(given)).model
    stored = load_champion(str(given), "stored").model
    matrices = {p.dtype for n, p in stored.named_parameters() if "layers" in n and p.ndim > 1}
    assert matrices <= {torch.float32 if family == "gemma" else torch.bfloat16}
    ends = (stored.get_input_embeddings(), stored.get_output_embeddings())
    assert {end.weight.dtype for end in ends} == {torch.float32}
    assert stored.state_dict().keys() == whole.state_dict().keys()
    for name, value in whole.named_parameters():
        assert torch.equal(stored.get_parameter(name).float(), value), name
    for name, value in whole.named_buffers():
        found = stored.get_buffer(name)
        assert found.dtype == value.dtype, name
        assert torch.equal(found, value), name
    assert storage.storage_dtype(stored) == storage.storage_dtype(whole) == torch.bfloat16


def test_weights_of_several_dtypes_are_made_float32_at_once(tmp_path: Path) -> None:
    path = directory(tmp_path, torch.bfloat16) / "model.safetensors"
    weights = load_file(path)
    fine = torch.full_like(weights["model.norm.weight"], 1 + 2**-20, dtype=torch.float32)
    save_file({**weights, "model.norm.weight": fine}, path, metadata={"format": "pt"})
    model = load_champion(str(path.parent), "stored").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.get_parameter("model.norm.weight"), fine)


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
