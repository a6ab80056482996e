"""Two verdicts of THEATRE in a row take a run back to what passed last, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from distforge.errors import InputError
from distforge.handoff.verdict import INCONCLUSIVE, PASS, THEATRE
from distforge.models.export import export_model
from distforge.optim import MuonGrokfastConfig
from distforge.quietstar.config import RollbackConfig
from distforge.quietstar.rollback import Course, Rollback
from distforge.telemetry import RunLogger, TelemetryConfig, read_metrics
from distforge.telemetry.metrics import (
    RL,
    RL_ROLLED_BACK_TO,
    RL_VERDICT,
    TRAIN_BRANCH,
    TRAIN_LEARNING_RATE,
    TRAIN_STEP,
)
from distforge.training.checkpoint import load_state
from distforge.training.distributed import World
from tests.judging_cases import STEPS, ScriptedJudge, judged_config, state_files
from tests.thinking_cases import SILENT, make_trainer, text_config
from tests.unit.telemetry.wandb_file import history, only_run_file, read_records

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
LETTERS = {"P": PASS, "T": THEATRE, "I": INCONCLUSIVE}


def judge(letters: str) -> ScriptedJudge:
    return ScriptedJudge([LETTERS[letter] for letter in letters])


def trained_weights(trainer) -> dict[str, torch.Tensor]:
    with trainer.engine.whole_model() as model:
        return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one, other) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "verdicts, decisions",
    [
        ("PTT", ["pin", "go on", "go back"]),
        ("TPT", ["go on", "pin", "go on"]),
        ("TIT", ["go on", "go on", "go back"]),
        ("TIPIT", ["go on", "go on", "pin", "go on", "go on"]),
        ("TTT", ["go on", "go back", "go on"]),
        ("TTTTTT", ["go on", "go back", "go on", "go back", "go on", "end"]),
        ("TTPTTTT", ["go on", "go back", "pin", "go on", "go back", "go on", "end"]),
    ],
)
def test_what_verdicts_lead_to(verdicts: str, decisions: list[str]) -> None:
    course, made = Course(RollbackConfig(every_steps=1)), []
    for letter in verdicts:
        again = Course(RollbackConfig(every_steps=1))
        again.load_state_dict(json.loads(json.dumps(course.state_dict())))
        course = again  # a run that is killed after each
        made.append(course.note(LETTERS[letter]))
        if made[-1] == "go back":
            course.go_back(9, 3)
    assert made == decisions


def test_each_retry_changes_one_thing_more() -> None:
    course = Course(RollbackConfig(every_steps=5, retries=3))
    seen = [(course.kl_factor, course.lr_factor, course.redraws)]
    for number in range(3):
        course.go_back(10 * (number + 1), 5)
        seen.append((course.kl_factor, course.lr_factor, course.redraws))
    assert seen == [(1, 1, 0), (2, 1, 0), (2, 0.5, 0), (2, 0.5, 1)]
    assert course.rollbacks[1] == Rollback(step=20, to=5, branch=2, change="lr")
    assert [step for step in range(1, 16) if course.is_due(step, 15)] == [5, 10]
    assert not any(Course(RollbackConfig()).is_due(step, 100) for step in range(101))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"patience": 0}, "rollback.patience is 0"),
        ({"every_steps": -1}, "rollback.every_steps is -1"),
        ({"retries": 4}, "rollback.retries is 4 with 3 rollback.changes"),
        ({"changes": ("kl", "luck")}, "rollback.changes is 'luck'"),
    ],
)
def test_settings_that_cannot_be(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        RollbackConfig(**settings)


def test_a_coefficient_that_cannot_be_doubled_is_refused() -> None:
    optimizer = dataclasses.replace(
        judged_config().optimizer,
        muon_grokfast=dataclasses.replace(MuonGrokfastConfig.rl(), kl_coefficient=0.0),
    )
    with pytest.raises(InputError, match="kl_coefficient is 0, so a rollback that doubles it"):
        judged_config(optimizer=optimizer)
    judged_config(optimizer=optimizer, rollback=RollbackConfig(every_steps=2, changes=("lr",) * 2))


@pytest.mark.parametrize(
    # Free text has a scorer and a mixing head besides.
    "text",
    [pytest.param(False, marks=pytest.mark.nightly), True],
    ids=["questions", "text"],
)
def test_it_goes_back_bit_for_bit(tmp_path: Path, text: bool) -> None:
    """Verdicts after 1 (PASS), 2 and 3 (THEATRE); then after 2, 3 and 4."""
    config = judged_config()
    if text:
        kinds = ("thought", "positions", "reward")
        config = dataclasses.replace(config, **{k: getattr(text_config(), k) for k in kinds})
    trainer = make_trainer(tmp_path, config, WORLD, text=text, judge=judge("PTT"))
    weights, go_back = {}, trainer._keeper.go_back
    pin = trainer._keeper.pin

    def note_pin() -> None:
        weights.setdefault("passed", trained_weights(trainer))
        pin()

    def note_back() -> None:
        weights["before"] = trained_weights(trainer)
        go_back()
        weights["after"] = trained_weights(trainer)
        saved = [tmp_path / "checkpoints" / f"step_{number}" for number in (1, 3)]
        # Weights, optimizer, random state, scorer and best weights as they are in memory now ...
        assert state_files(saved[0]) == state_files(saved[1])
        assert len(state_files(saved[0])) > 6
        # ... and guard, advantages, averages and the pool's ledger.
        states = [load_state(path) for path in saved]
        lasting = [(state.pop("lasting"), state.pop("abandoned")) for state in states]
        pins = [state.pop("pins")[-1] for state in states]
        cost = [state["observer"].pop("training_tokens") for state in states]
        assert 0 < cost[0] < cost[1], "what a branch that was left has cost stays spent"
        assert states[0] == states[1]
        assert pins == [[1, 1], [1, 1]]
        assert [abandoned for _, abandoned in lasting] == [0, 2]
        assert [kept["judge"] for kept, _ in lasting] == [{"looks": 1}, {"looks": 3}]

    start = trained_weights(trainer)
    trainer._keeper.pin, trainer._keeper.go_back = note_pin, note_back
    outcome = trainer.train()
    assert_equal(weights["passed"], start)  # pinned before the first step
    assert any(not torch.equal(weights["before"][n], weights["after"][n]) for n in start)
    checkpoint = load_file(tmp_path / "checkpoints" / "step_6" / "model.safetensors")
    assert_equal(
        {name: value for name, value in trained_weights(trainer).items() if name in checkpoint},
        checkpoint,
    )
    assert outcome.rollbacks == (Rollback(step=3, to=1, branch=1, change="kl"),)
    assert (outcome.steps, outcome.episodes, outcome.ended_by_verdict) == (6, 12, False)
    usual = config.optimizer.muon_grokfast.kl_coefficient
    assert trainer.loss.kl_coefficient == 2 * usual > 0
    assert trainer._judge.asked == [(step, STEPS) for step in (1, 2, 3, 2, 3)]


def test_one_verdict_of_theatre_does_not(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, judged_config(), WORLD, judge=judge("TPT"))
    outcome = trainer.train()
    assert (outcome.rollbacks, outcome.steps) == ((), STEPS)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_2", "step_3", "step_4", "latest"}  # the last PASS and the last two


def numbers(directory: Path, name: str) -> dict[int, float]:
    records = read_metrics(directory / "metrics.jsonl")
    return {r.step: r.metrics[name] for r in records if name in r.metrics}


def test_a_run_whose_verdicts_are_good_is_as_without_a_judge(tmp_path: Path) -> None:
    logged, ends = [], []
    for name, scripted in (("none", None), ("good", judge(""))):
        with RunLogger(tmp_path / name, SILENT, {}, "tiny") as logger:
            trainer = make_trainer(
                tmp_path / name, judged_config(), WORLD, logger=logger, judge=scripted
            )
            trainer.train()
        ends.append(trained_weights(trainer))
        logged.append(
            [
                (
                    r.step,
                    {k: repr(v) for k, v in r.metrics.items() if not re.search("time|second", k)},
                )
                for r in read_metrics(tmp_path / name / "metrics.jsonl")
                if RL_VERDICT not in r.metrics
            ]
        )
    assert_equal(*ends)
    assert logged[0] == logged[1]
    assert numbers(tmp_path / "good", RL_VERDICT) == {1: 1.0, 2: 1.0, 3: 1.0}


def test_metrics_go_on_and_none_is_lost(tmp_path: Path, caplog) -> None:
    """The first rollback halves the learning rate, the second samples anew."""
    console = Console(file=io.StringIO(), width=200)
    config = judged_config(rollback=RollbackConfig(every_steps=1, changes=("lr", "seed")))
    with (
        caplog.at_level(logging.WARNING),
        RunLogger(tmp_path, TelemetryConfig(), {}, "tiny", console=console) as logger,
    ):
        trainer = make_trainer(tmp_path, config, WORLD, logger=logger, judge=judge("PTTTT"))
        first_plan = trainer._plan(2)
        outcome = trainer.train()
    assert [(r.step, r.to, r.change) for r in outcome.rollbacks] == [(3, 1, "lr"), (3, 1, "seed")]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r.step for r in records] == sorted(r.step for r in records)
    rewards, rates = (numbers(tmp_path, name) for name in (RL["reward"], TRAIN_LEARNING_RATE))
    assert list(rewards) == list(range(1, 9))
    # Steps 2, 4 and 6 are the second of training, with the same weights and items; the rate is
    # half from step 4 on, and from step 6 on the thoughts are others.
    assert rates[2] == 2 * rates[4] == 2 * rates[6]
    assert rewards[2] == rewards[4] != rewards[6]
    asked = [[request.payload for request in plan] for plan in (first_plan, trainer._plan(2))]
    assert asked[0] == asked[1]
    assert not {r.seed for r in first_plan} & {r.seed for r in trainer._plan(2)}
    assert list(numbers(tmp_path, RL_VERDICT).values()) == [1, -1, -1, -1, -1, 1, 1]
    assert numbers(tmp_path, RL_ROLLED_BACK_TO) == {3: 1, 5: 1}
    own = {r.step: (r.metrics[TRAIN_STEP], r.metrics[TRAIN_BRANCH]) for r in records if r.step > 3}
    assert own == {4: (2, 1), 5: (3, 1), 6: (2, 2), 7: (3, 2), 8: (4, 2)}
    assert not any(TRAIN_STEP in r.metrics for r in records if r.step <= 3)
    assert numbers(tmp_path, RL["episode"])[4] == 4
    rows = history(read_records(only_run_file(tmp_path)))
    merged: dict[int, dict[str, float]] = {}
    for record in records:
        merged.setdefault(record.step, {}).update(record.metrics)
    assert [row["_step"] for row in rows] == list(merged) == list(range(9))
    for row in rows:
        assert merged[row["_step"]].keys() == {key for key in row if key[0] != "_"}
    assert not caplog.records
    said = console.file.getvalue()
    passed = "back from step 3 to step 1, which passed; from there on"
    assert f"{passed} the learning rate is halved" in said
    assert f"{passed} thoughts are sampled with a new seed" in said


@pytest.mark.parametrize("passed_at", [0, 1])
def test_after_the_last_retry_training_ends_with_what_passed(tmp_path: Path, passed_at) -> None:
    config = judged_config(rollback=RollbackConfig(every_steps=1, retries=1))
    script = "P" * passed_at + "T" * 4
    trainer = make_trainer(tmp_path, config, WORLD, judge=judge(script))
    expected, pin = {}, trainer._keeper.pin

    def note_pin() -> None:
        expected.clear()
        with trainer.engine.whole_model() as model:
            export_model(model, trainer._tokenizer, tmp_path / f"at_{trainer._keeper.step}")
        pin()

    trainer._keeper.pin = note_pin
    outcome = trainer.train()
    assert outcome.ended_by_verdict
    assert [(r.step, r.to) for r in outcome.rollbacks] == [(passed_at + 2, passed_at)]
    assert (outcome.steps, outcome.best.step) == (passed_at + 4, passed_at)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert f"step_{passed_at}" in kept
    trainer.save_model(tmp_path / "model")
    files = [tmp_path / d / "model.safetensors" for d in (f"at_{passed_at}", "model")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # Started again, it has ended already.
    again = make_trainer(tmp_path, config, WORLD, judge=(silent := judge("")))
    same = again.train()
    assert dataclasses.replace(same, best=outcome.best) == outcome
    assert same.best == outcome.best
    assert silent.asked == []


def test_a_damaged_pin_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, judged_config(), WORLD, judge=judge("PTT"))
    after_step = trainer._after_step

    def damage(step, total, source) -> None:
        if step.step == 3:
            file = tmp_path / "checkpoints" / "step_1" / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        after_step(step, total, source)

    trainer._after_step = damage
    with pytest.raises(
        InputError, match=r"cannot go back to .*step_1, which cannot be used \(.*model"
    ):
        trainer.train()
