"""What phase 4 takes: everything in order, or a list of all that is missing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from distforge.cli import main
from distforge.data.strategies import THINKING_TOKENS
from distforge.errors import InputError
from distforge.handoff.from_phase2 import find_champion_faults
from distforge.handoff.statement import read_statement
from distforge.handoff.to_phase4 import find_faults, write_handoff
from distforge.registry import write_manifest
from tests.champion_files import MODELS, PHASE2, pair_of
from tests.handed_over import MEASURED, handed_over, restate, save_model, verdict

Break = Callable[[Path], object]
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(handed_over(), tmp_path / "model"))


def test_a_whole_one_may_go(capsys: pytest.CaptureFixture) -> None:
    model = handed_over()
    assert find_faults(model) == []
    assert main(["handoff", "check", str(model)]) == 0
    said = capsys.readouterr().out
    assert "ready for phase 4" in said
    for part in ("94.7% on 2000 held-out questions", "before it 74.8%", "+0.1640", "PASS on 1800"):
        assert part in said
    assert f"{0.3650:.4f} [0.3100, 0.4200] > 0.02" in said


def test_what_is_written_says_what_was_measured_and_of_what() -> None:
    model = handed_over()
    stated = json.loads((model / "handoff.json").read_text())
    assert {name: stated[name] for name in MEASURED} == MEASURED
    assert (stated["phase"], stated["verdict"], stated["manifest"]) == (3, "PASS", "manifest.json")
    assert stated["theater"] == verdict().as_json()
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in THINKING_TOKENS}
    assert stated["thinking_tokens"] == ids
    [weights] = [
        entry
        for entry in json.loads((model / "manifest.json").read_text())
        if entry["path"] == WEIGHTS
    ]
    assert stated["weights_sha256"] == weights["sha256"]


def flip(model: Path) -> None:
    content = bytearray((model / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (model / WEIGHTS).write_bytes(content)


def truncate(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: len(content) // 2])


def with_other_weights(model: Path) -> None:
    weights = load_file(model / WEIGHTS)
    weights["model.norm.weight"] += 1
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    write_manifest(model)


def with_custom_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    (model / "config.json").write_text(json.dumps(config))
    write_manifest(model)


def with_code_in_the_tokenizer(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization.Own", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    write_manifest(model)


def with_weights_elsewhere(model: Path) -> None:
    names = load_file(model / WEIGHTS).keys()
    (model / WEIGHTS).rename(model.parent / "outside.safetensors")
    save_file({}, model / "decoy.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    write_manifest(model)


def link_out(model: Path) -> None:
    (model.parent / "secret").write_text("x")
    (model / "more.txt").symlink_to(model.parent / "secret")


def add(name: str, vouched: bool) -> Break:
    def break_(model: Path) -> None:
        (model / name).write_bytes(b"x")
        if vouched:
            write_manifest(model)

    return break_


def remove(*names: str) -> Break:
    def break_(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return break_


def without_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    write_manifest(model)


def without_a_token(model: Path) -> None:
    shutil.rmtree(model)
    save_model(model, THINKING_TOKENS[:-1])
    write_handoff(model, "PASS", verdict().as_json(), **MEASURED)


def with_a_larger_tokenizer(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(model)
    write_manifest(model)


def state(**changes: Any) -> Break:
    return lambda model: restate(model, **changes)


def state_theater(**changes: Any) -> Break:
    return state(theater=verdict().as_json() | changes)


def with_bound(name: str, value: Any) -> Break:
    theater = verdict().as_json()
    theater["measures"]["ablation"][name] = value
    return state(theater=theater)


def judged(ablation: tuple[float, float]) -> Break:
    found = verdict(ablation)
    return state(verdict=found.outcome, theater=found.as_json())


def with_statement(text: str) -> Break:
    def break_(model: Path) -> None:
        (model / "handoff.json").write_text(text)
        write_manifest(model)

    return break_


THINK = "`distforge think --config RUN/config.toml --existing replace"
BROKEN: dict[str, tuple[Break, list[str]]] = {
    "flipped byte": (flip, [f"{WEIGHTS} has sha256", "`distforge registry show"]),
    "truncated": (truncate, [f"{WEIGHTS} has", "but manifest.json says"]),
    "link out": (link_out, ["more.txt is a link"]),
    "unlisted file": (add("notes.txt", vouched=False), ["notes.txt is not listed"]),
    "no manifest": (remove("manifest.json"), ["manifest.json does not exist"]),
    "no config": (remove("config.json"), ["config.json is listed", "missing"]),
    "custom code": (with_custom_code, ["config.json has 'auto_map'"]),
    "custom tokenizer": (with_code_in_the_tokenizer, ["tokenizer_config.json has 'auto_map'"]),
    "weights elsewhere": (with_weights_elsewhere, ["names ../outside.safetensors, which is no"]),
    "bin": (add("pytorch_model.bin", vouched=True), ["pytorch_model.bin can hold code", "`rm "]),
    "py": (add("modeling.py", vouched=True), ["modeling.py can hold code"]),
    "no tokenizer": (without_tokenizer, ["tokenizer: no tokenizer can be loaded", THINK]),
    "lost token": (without_a_token, [f"thinking token {THINKING_TOKENS[-1]}", "`distforge bake`"]),
    "small embedding": (with_a_larger_tokenizer, ["tokenizer: ", "ids up to", "rows"]),
    "no statement": (remove("handoff.json"), ["handoff.json is missing", THINK]),
    "list": (with_statement("[1]"), ["must hold one JSON object", THINK]),
    "half": (with_statement('{"phase": 3,'), ["is not JSON", THINK]),
    "phase 2": (state(phase=2), ["phase is 2"]),
    "other weights": (with_other_weights, ["weights_sha256 is", "the model's own", THINK]),
    "other ids": (state(thinking_tokens={}), ["thinking_tokens is {}", THINK]),
    "not enough": (state(baked_accuracy=0.849), ["baked_accuracy is 0.849", "`distforge bake`"]),
    "not measured": (
        state(baked_accuracy=None),
        ["baked_accuracy is null", "`distforge evaluate --model", f"{THINK} --baked-accuracy"],
    ),
    "percent": (state(baked_accuracy=94.7), ["baked_accuracy is 94.7"]),
    "true": (state(baked_accuracy=True), ["baked_accuracy is True"]),
    "text": (state(baked_accuracy="0.9"), ["baked_accuracy is '0.9'"]),
    "nan": (state(baked_accuracy=float("nan")), ["baked_accuracy is nan"]),
    "infinite gain": (state(gain=float("inf")), ["gain is inf"]),
    "theatre": (judged((-0.04, 0.01)), ["verdict is 'THEATRE'", "`distforge judge --model"]),
    "inconclusive": (judged((0.01, 0.3)), ["verdict is 'INCONCLUSIVE'", "`distforge judge"]),
    "lower case": (state(verdict="pass"), ["verdict is 'pass'"]),
    "no evidence": (state(theater={}), ["theater is {}", "`distforge judge --model"]),
    "bounds that do not clear": (with_bound("low", 0.01), ["bounds make INCONCLUSIVE"]),
    "bounds of theatre": (with_bound("high", 0.01), ["theater.measures.ablation.high is 0.01"]),
    "bound of nan": (with_bound("low", float("nan")), ["ablation.low is nan"]),
    "bound of text": (with_bound("low", "0.3"), ["ablation.low is '0.3'"]),
    "another outcome": (
        state(theater=verdict((0.01, 0.3)).as_json()),
        ["it says 'INCONCLUSIVE', not 'PASS'"],
    ),
    "a measure less": (state_theater(measures={}), ["theater", "measures"]),
    "something missing": (state_theater(missing=["a control"]), ["bounds make INCONCLUSIVE"]),
}


def has(faults: list[str], words: list[str]) -> bool:
    return any(all(word in fault for word in words) for fault in faults)


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_has_its_reason_and_its_remedy(model: Path, name: str) -> None:
    break_, words = BROKEN[name]
    break_(model)
    faults = find_faults(model)
    assert has(faults, words), faults


# Each only adds to what is wrong, so that two of them can be done one after the other.
COMBINED = ("not enough", "lower case", "custom code", "bin", "small embedding", "link out")


@pytest.mark.parametrize(
    "one, other",
    [
        *((a, b) for a, b in itertools.combinations(COMBINED, 2)),
        ("flipped byte", "unlisted file"),
        ("no config", "flipped byte"),
        ("no manifest", "link out"),
        ("no tokenizer", "other weights"),
    ],
)
def test_two_faults_are_both_named(model: Path, one: str, other: str) -> None:
    for name in (one, other):
        BROKEN[name][0](model)
    faults = find_faults(model)
    for name in (one, other):
        assert has(faults, BROKEN[name][1]), (name, faults)


def test_a_new_manifest_hides_nothing_but_the_change(model: Path) -> None:
    flip(model)
    write_manifest(model)
    assert [fault for fault in find_faults(model) if "weights_sha256" in fault]


def test_the_command_lists_all_and_names_the_run(model: Path, capsys) -> None:
    (model.parent / "config.toml").touch()
    restate(model, verdict="THEATRE", baked_accuracy=0.5, gain="much")
    assert main(["handoff", "check", str(model)]) == 3
    said = capsys.readouterr().out
    assert said.count("missing: ") == 3
    assert f"distforge think --config {model.parent}/config.toml" in said
    assert "REFUSED by phase 4" in said


def test_a_directory_that_nobody_may_read(model: Path) -> None:
    model.chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # to whom nothing is unreadable
            os.seteuid(65534)
        try:
            faults = find_faults(model)
        finally:
            if is_root:
                os.seteuid(0)
    finally:
        model.chmod(0o755)
    assert has(faults, ["cannot be read", "chmod -R u+rX"])


def test_no_model_and_no_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    faults = find_faults(tmp_path / "empty")
    for part in ("manifest: ", "model: ", "tokenizer: ", "handoff.json is missing"):
        assert any(part in fault for fault in faults), part
    with pytest.raises(InputError, match="is not a directory"):
        find_faults(tmp_path / "nowhere")
    assert main(["handoff", "check", str(tmp_path / "nowhere")]) == 2


def test_what_a_later_version_says_beyond_it_is_let_through(model: Path) -> None:
    theater = verdict().as_json() | {"seed": 7}
    restate(model, theater=theater, registry_version="rl_reasoning/1")
    assert find_faults(model) == []
    assert read_statement(model).model_extra == {"registry_version": "rl_reasoning/1"}


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
    assert main(["handoff", "check", str(handed_over()), "--receiver", "3"]) == 0
