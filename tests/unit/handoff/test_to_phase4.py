"""What phase 4 takes: everything in order, or a list of all that is missing."""

import json
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.data.strategies import THINKING_TOKENS
from distforge.errors import InputError
from distforge.handoff.to_phase4 import find_champion_faults, find_faults, write_handoff
from distforge.models.vocabulary import add_thinking_tokens
from distforge.registry import write_manifest
from tests.champion_files import MODELS, PHASE2, pair_of
from tests.tiny_models import tiny_llama, tiny_tokenizer


def save_model(directory: Path, tokens=THINKING_TOKENS) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    if tokens:
        add_thinking_tokens(model, tokenizer, tokens, 0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = save_model(tmp_path / "model")
    write_handoff(directory, 0.9, "PASS", {"registry_version": "rl_reasoning/1"})
    return directory


def test_a_whole_one_may_go(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert find_faults(model) == []
    assert main(["handoff", "check", str(model)]) == 0
    assert "ready for phase 4" in capsys.readouterr().out
    stated = json.loads((model / "handoff.json").read_text())
    assert stated["registry_version"] == "rl_reasoning/1"


@pytest.mark.parametrize(
    "accuracy, verdict, fault",
    [
        (0.849, "PASS", "baked_accuracy is 0.849"),
        (1.5, "PASS", "baked_accuracy is 1.5"),
        (True, "PASS", "baked_accuracy is True"),
        ("0.9", "PASS", "baked_accuracy is '0.9'"),
        (None, "PASS", "baked_accuracy is None"),
        (0.9, "THEATRE", "verdict is 'THEATRE'"),
        (0.9, "INCONCLUSIVE", "verdict is 'INCONCLUSIVE'"),
        (0.9, "pass", "verdict is 'pass'"),
    ],
)
def test_what_it_states_must_be_enough(model: Path, accuracy, verdict, fault: str) -> None:
    write_handoff(model, accuracy, verdict)
    [found] = find_faults(model)
    assert fault in found


def test_all_that_is_missing_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    directory = save_model(tmp_path / "model", tokens=THINKING_TOKENS[:6])
    faults = find_faults(directory)
    assert len(faults) == 4
    for part in ("manifest", "handoff.json is missing", *THINKING_TOKENS[6:]):
        assert any(part in fault for fault in faults), part
    assert main(["handoff", "check", str(directory)]) == 3
    said = capsys.readouterr().out
    assert said.count("missing: ") == 4
    assert "REFUSED by phase 4" in said


def test_one_flipped_byte(model: Path) -> None:
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert any("model.safetensors has sha256" in fault for fault in find_faults(model))


def test_a_statement_that_is_not_phase_3_or_not_json(model: Path) -> None:
    (model / "handoff.json").write_text('{"phase": 2, "baked_accuracy": 0.9, "verdict": "PASS"}')
    write_manifest(model)
    assert find_faults(model) == ["phase is 2, not 3"]
    (model / "handoff.json").write_text("{")
    write_manifest(model)
    [fault] = find_faults(model)
    assert "not readable as JSON" in fault


def test_no_model_and_no_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert any("model: " in fault for fault in find_faults(tmp_path / "empty"))
    with pytest.raises(InputError, match="is not a directory"):
        find_faults(tmp_path / "nowhere")
    assert main(["handoff", "check", str(tmp_path / "nowhere")]) == 2


def test_a_champion_of_phase_2(tmp_path: Path) -> None:
    def champion(name: str, metadata: dict) -> Path:
        (tmp_path / name).mkdir()
        return pair_of(MODELS["llama-tied"](), tmp_path / name, metadata=metadata)

    good = champion("good", PHASE2)
    assert find_champion_faults(good) == []
    assert main(["handoff", "check", str(good)]) == 0
    [fault] = find_champion_faults(champion("weak", {**PHASE2, "fitness_improvement": 0.1}))
    assert "fitness_improvement is 0.1" in fault
    silent = champion("silent", {})
    [fault] = find_champion_faults(silent)
    assert "phase is None" in fault
    assert main(["handoff", "check", str(silent)]) == 3
    directory = save_model(tmp_path / "directory")
    assert main(["handoff", "check", str(directory), "--receiver", "3"]) == 0
