"""What phase 2 hands over: nothing in it is run, and nothing incomplete is accepted."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge.models.loading import load_champion
from tests.champion_files import (
    INPUT,
    PHASE2,
    ROWS,
    description_of,
    directory_of,
    pair_of,
    pickle_of,
    refused,
)
from tests.tiny_models import tiny_gpt2, tiny_llama


class Trap:
    """Unpickled freely, it creates the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_that_would_run_something_is_refused_unopened(tmp_path: Path, save: str) -> None:
    created, path = tmp_path / "created", tmp_path / "champion.pt"
    content = {"state_dict": {"w": torch.zeros(2)}, "config": Trap(created)}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Trap(created), protocol=2))
    refused(path, str(path), "not opened", ".safetensors")
    assert not created.exists()
    if save == "pickle":  # the trap is real: it would have sprung
        pickle.loads(path.read_bytes()).close()
        assert created.exists()


def test_a_legacy_file_may_name_its_weights_as_trainers_do(tmp_path: Path) -> None:
    model = tiny_gpt2(ROWS)
    path = pickle_of(model, tmp_path)
    content = torch.load(path, weights_only=True)
    content["model_state_dict"] = content.pop("state_dict")
    torch.save(content, path)
    assert torch.equal(load_champion(str(path)).model(INPUT).logits, model(INPUT).logits)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (torch.zeros(3), "'config'"),
        ({"state_dict": {"w": torch.zeros(2)}}, "'config'"),
        ({"config": {"model_type": "llama"}}, "no 'state_dict'"),
        ({"config": {"model_type": "llama"}, "state_dict": {}}, "no 'state_dict'"),
        ({"config": {"model_type": "llama"}, "state_dict": {"w": [1.0]}}, "'w'"),
        ({"config": {"model_type": "llama"}, "state_dict": {3: torch.ones(1)}}, "3"),
    ],
)
def test_a_legacy_file_without_its_parts_is_refused(
    tmp_path: Path, content: Any, word: str
) -> None:
    torch.save(content, tmp_path / "champion.pt")
    refused(tmp_path / "champion.pt", "champion.pt", word)


@pytest.mark.parametrize("length", [0, 10, 3000])
def test_a_truncated_legacy_file_is_refused(tmp_path: Path, length: int) -> None:
    path = pickle_of(tiny_gpt2(ROWS), tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    refused(path, str(path))


@pytest.mark.parametrize("form", [pair_of, pickle_of])
def test_a_handed_over_config_with_too_few_layers_is_refused(
    tmp_path: Path, form: Callable[..., Path]
) -> None:
    model = tiny_llama(ROWS)
    config = description_of(model)["config"] | {"num_hidden_layers": 1, "layer_types": None}
    refused(form(model, tmp_path, config=config), "champion.", "model.layers.1.")


def test_a_pair_without_its_description_is_refused(tmp_path: Path) -> None:
    path = pair_of(tiny_gpt2(ROWS), tmp_path)
    (tmp_path / "champion.json").unlink()
    refused(path, "champion.json is missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not readable as JSON"]),
        ("[]", ["expected a JSON object"]),
        ("{}", ["'config'"]),
        ('{"config": {"vocab_size": 3}}', ["model_type"]),
        ('{"config": {"model_type": "llama"}, "metadata": [1]}', ["metadata"]),
        ('{"config": {"model_type": "llama"}, "tokenizer": 3}', ["tokenizer is 3"]),
        ('{"config": {"model_type": "llama"}, "tokenizer": "no"}', ["'no' does not exist"]),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    path = pair_of(tiny_gpt2(ROWS), tmp_path)
    (tmp_path / "champion.json").write_text(text)
    refused(path, "champion.json", *words)


@pytest.mark.parametrize("name", ["..", "/etc", "tok/../../x", "link"])
def test_a_tokenizer_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "inside"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    refused(pair_of(tiny_gpt2(ROWS), root, tokenizer=name), repr(name), "outside")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "nonesuch"},
        {"model_type": "vit"},
        {"hidden_size": "wide"},
        {"num_hidden_layers": -1},
    ],
)
def test_a_config_of_no_causal_model_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny_llama(ROWS)
    config = description_of(model)["config"] | changes
    refused(pair_of(model, tmp_path, config=config), "champion.safetensors", "config")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", {"": "someone/kernel@main:run"}])
@pytest.mark.parametrize("form", [directory_of, pair_of])
def test_a_config_that_names_code_on_the_hub_is_refused(
    tmp_path: Path, form: Callable[..., Path], key: str, value: object
) -> None:
    path = form(tiny_llama(ROWS), tmp_path)
    file = path / "config.json" if path.is_dir() else path.with_suffix(".json")
    content = json.loads(file.read_text())
    (content if path.is_dir() else content["config"])[key] = value
    file.write_text(json.dumps(content))
    refused(path, file.name, "names code on the hub")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"phase": 2}, ["champion_selected is None", "fitness_improvement is None"]),
        (PHASE2 | {"phase": 1}, ["phase is 1, not 2"]),
        (PHASE2 | {"champion_selected": 1}, ["champion_selected is 1, not true"]),
        (PHASE2 | {"champion_selected": False}, ["champion_selected is False"]),
        (PHASE2 | {"fitness_improvement": 0.19}, ["0.19, not at least 0.20"]),
        (PHASE2 | {"fitness_improvement": float("nan")}, ["nan, not at least 0.20"]),
        (PHASE2 | {"fitness_improvement": True}, ["True, not at least 0.20"]),
        (PHASE2 | {"fitness_improvement": "0.5"}, ["'0.5', not at least 0.20"]),
        ({"fitness_improvement": 0.5}, ["phase is None", "champion_selected is None"]),
    ],
)
@pytest.mark.parametrize("form", [pair_of, pickle_of])
def test_a_model_that_phase_2_did_not_select_is_refused(
    tmp_path: Path, form: Callable[..., Path], metadata: dict[str, Any], words: list[str]
) -> None:
    refused(form(tiny_gpt2(ROWS), tmp_path, metadata=metadata), "not a champion of phase 2", *words)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"author": "me"}, PHASE2 | {"fitness_improvement": 0.2, "more": [1]}]
)
def test_metadata_that_does_not_object_is_kept(tmp_path: Path, metadata: Any) -> None:
    champion = load_champion(str(pair_of(tiny_gpt2(ROWS), tmp_path, metadata=metadata)))
    assert champion.metadata == (metadata or {})
