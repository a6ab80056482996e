"""``distforge judge``: bad inputs, tags of one's own, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from distforge.cli import BAD_INPUT, GOAL_MISSED, main
from distforge.commands import judge
from distforge.data import make_examples, write_splits
from distforge.errors import InputError
from distforge.handoff.verdict import Verdict
from distforge.models.vocabulary import add_thinking_tokens
from distforge.theater.evidence import Examinee
from tests.thinking_cases import thinking_pair
from tests.tiny_models import tiny_llama, tiny_tokenizer

SMALL = ["--thought.max-tokens=3", "--theater.thoughts=4", "--theater.bootstrap=1000"]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """A model that thinks, and data of both splits."""
    root = tmp_path_factory.mktemp("judge")
    model, tokenizer = thinking_pair()
    model.lm.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    write_splits(make_examples(420, 0), root / "data")
    return root / "model", root / "data"


def test_a_model_without_a_control_is_judged_and_does_not_pass(places, tmp_path, capsys):
    model, data = places
    out = tmp_path / "verdict.json"
    status = main(["judge", f"--model={model}", f"--data={data}", f"--json={out}", *SMALL])
    assert status == GOAL_MISSED
    verdict = Verdict.from_json(json.loads(out.read_text()))
    assert set(verdict.controls) == {"own", "none", "shuffled", "filler", "random"}
    assert "--control.path" in verdict.missing[0]
    assert verdict.items >= 30
    assert f"verdict: {verdict.outcome}" in capsys.readouterr().out


def test_a_control_is_trained_on_the_training_questions_and_found_beside_a_run(
    places, tmp_path, capsys
):
    model, data = places
    keep = tmp_path / "control"
    train = ["--control.tokens=500", f"--control.keep={keep}", "--control.batch-size=8"]
    out = tmp_path / "verdict.json"
    words = ["judge", f"--data={data}", f"--json={out}", "--items=32", *SMALL]
    assert main([*words, f"--model={model}", *train]) == GOAL_MISSED
    assert "direct" in json.loads(out.read_text())["controls"]
    (tmp_path / "model").symlink_to(model)
    assert main([*words, f"--model={tmp_path / 'model'}"]) == GOAL_MISSED
    assert "direct" in json.loads(out.read_text())["controls"]


def test_all_models_are_asked_in_the_wanted_dtype(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = places
    seen: list[Examinee] = []

    def look(who: Examinee, *_: object, **__: object) -> NoReturn:
        seen.append(who)
        raise InputError("seen")

    monkeypatch.setattr(judge, "evaluate_theater", look)
    words = ["judge", f"--model={model}", f"--data={data}", f"--reference={model}", *SMALL]
    words += ["--control.tokens=500", f"--control.keep={tmp_path / 'control'}"]
    words += ["--control.batch-size=8"]
    for dtype in (torch.bfloat16, torch.float32):
        assert main([*words, f"--dtype={str(dtype).removeprefix('torch.')}"]) == BAD_INPUT
        who = seen.pop()
        asked = (who.model, who.reference, who.direct["direct"])
        assert [{p.dtype for p in one.parameters()} for one in asked] == [{dtype}] * 3


def test_tags_of_ones_own(places, tmp_path):
    _, data = places
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    add_thinking_tokens(model, tokenizer, ("[T]", "[/T]"), 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["judge", f"--model={tmp_path / 'model'}", f"--data={data}", "--items=30", *SMALL]
    assert main(words) == BAD_INPUT
    assert main([*words, "--tags.opening=[T]", "--tags.closing=[/T]"]) == GOAL_MISSED


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--items=5"], "there are 5 held-out questions"),
        (["--control.tokens=9", "--control.data={heldout}"], "no training questions"),
        (["--tags.opening=[T]"], "has no [T]"),
        (["--model=nowhere"], "holds no model"),
        (["--data={train}"], "no held-out questions"),
    ],
)
def test_bad_input_is_named(places, capsys, words, said):
    model, data = places
    named = {"heldout": data / "heldout.jsonl", "train": data / "train.jsonl"}
    words = [word.format(**named) for word in words]
    assert main(["judge", f"--model={model}", f"--data={data}", *SMALL, *words]) == BAD_INPUT
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--theater.thoughts=3"], ["--theater.alpha=1"]])
def test_settings_out_of_their_range_are_refused(places, words, capsys):
    model, data = places
    assert main(["judge", f"--model={model}", f"--data={data}", *words]) == BAD_INPUT
    assert "error: theater: " in capsys.readouterr().err
