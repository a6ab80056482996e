"""Champions on disk, in the three forms that a file or directory can have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from distforge.errors import InputError
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from tests.tiny_models import LINES, tiny_gpt2, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = len(TOKENIZER)
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-tied": lambda: tiny_llama(ROWS),
    "llama-untied": lambda: tiny_llama(ROWS, tied=False),
    "gpt2": lambda: tiny_gpt2(ROWS),
}
PHASE2 = {"phase": 2, "champion_selected": True, "fitness_improvement": 0.25}
INPUT = torch.tensor([TOKENIZER.encode(LINES[0])])


def directory_of(model: PreTrainedModel, root: Path) -> Path:
    export_model(model, TOKENIZER, root / "hf")
    return root / "hf"


def description_of(model: PreTrainedModel) -> dict[str, Any]:
    """The `.json` side of a pair, and what a `.pt` holds beside its weights."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    return {"config": config, "tokenizer": "tok", "metadata": PHASE2}


def pair_of(
    model: PreTrainedModel,
    root: Path,
    weights: dict[str, Tensor] | None = None,
    **changes: Any,
) -> Path:
    TOKENIZER.save_pretrained(root / "tok")
    if weights is None:
        weights = load_file(directory_of(model, root) / "model.safetensors")
    save_file(weights, root / "champion.safetensors")
    description = description_of(model) | changes
    (root / "champion.json").write_text(json.dumps(description))
    return root / "champion.safetensors"


def pickle_of(model: PreTrainedModel, root: Path, **changes: Any) -> Path:
    TOKENIZER.save_pretrained(root / "tok")
    content = {"state_dict": model.state_dict()} | description_of(model) | changes
    torch.save(content, root / "champion.pt")
    return root / "champion.pt"


def refused(source: object, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_champion(str(source))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
