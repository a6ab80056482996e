"""A model from its configuration alone, against the same model with its weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distforge.errors import InputError
from distforge.models import loading
from distforge.models.loading import load_champion
from distforge.models.skeleton import load_skeleton
from tests.champion_files import MODELS, directory_of, pair_of, pickle_of


def names_and_shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()]


@pytest.mark.parametrize("form", [directory_of, pair_of, pickle_of])
@pytest.mark.parametrize("name", MODELS)
def test_every_form_has_the_names_shapes_and_ties_of_the_champion(
    tmp_path: Path, name: str, form: Callable[..., Path]
) -> None:
    path = str(form(MODELS[name](), tmp_path))
    skeleton, champion = load_skeleton(path), load_champion(path).model
    # A tied weight is listed once, so the lists differ where the ties do.
    assert names_and_shapes(skeleton) == names_and_shapes(champion)
    assert type(skeleton) is type(champion)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


def test_weights_are_neither_needed_nor_read(tmp_path: Path) -> None:
    directory = directory_of(MODELS["gpt2"](), tmp_path)
    expected = names_and_shapes(load_skeleton(str(directory)))
    (directory / "model.safetensors").write_bytes(b"broken")
    assert names_and_shapes(load_skeleton(str(directory))) == expected
    for path in directory.iterdir():
        if path.name != "config.json":
            path.unlink()
    assert names_and_shapes(load_skeleton(str(directory))) == expected
    assert names_and_shapes(load_skeleton(str(directory / "config.json"))) == expected


def test_of_a_hub_name_only_the_configuration_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, asked = directory_of(MODELS["llama-tied"](), tmp_path), []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(directory)

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    skeleton = load_skeleton("hf://Some-One/Model2.5-0.5B")
    assert asked == [("Some-One/Model2.5-0.5B", ["config.json"])]
    assert names_and_shapes(skeleton) == names_and_shapes(load_skeleton(str(directory)))


def test_code_from_elsewhere_does_not_run(tmp_path: Path) -> None:
    directory = directory_of(MODELS["gpt2"](), tmp_path)
    config = json.loads((directory / "config.json").read_text())
    ran = tmp_path / "ran"
    (directory / "modeling_hostile.py").write_text(f"open({str(ran)!r}, 'w')\n")
    expected = names_and_shapes(load_skeleton(str(directory)))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_hostile.Hostile"}
    (directory / "config.json").write_text(json.dumps(config))
    assert names_and_shapes(load_skeleton(str(directory))) == expected
    assert not ran.exists()
    config["experts_implementation"] = "someone/kernel"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names code on the hub"):
        load_skeleton(str(directory))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model_type": "abacus"}, "abacus"),
        ({"model_type": "vit"}, "causal language model"),
        ({"model_type": None}, "known model_type"),
        ({"n_head": 5}, "causal language model"),
    ],
)
def test_configurations_that_describe_no_language_model(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    directory = directory_of(MODELS["gpt2"](), tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        load_skeleton(str(directory))
