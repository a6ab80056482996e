"""Baking from end to end on a tiny model, with every option."""

from __future__ import annotations

import dataclasses
import math
import signal

import pytest
import torch
from safetensors.torch import load_file

from distforge.baking import PromptBaker
from distforge.baking.prompt import prompt_baker
from distforge.baking.prompt.delta import weights_sha256
from distforge.baking.prompt.prompt_training import BakeTraining
from distforge.data import STRATEGY_PROMPTS
from distforge.errors import InputError, RunStopped
from distforge.reports.prompt_summary import AnswerRow
from distforge.training.keeping import Keeper
from tests.baking_cases import OTHER_PROMPT, PROMPT, config, examples, model, tokenizer, wanted


def baker(family: str = "llama", directory=None, check=None, base=None, **changes) -> PromptBaker:
    return PromptBaker(
        base or model(family),
        tokenizer(),
        "cpu",
        config=config(**changes),
        examples=examples(),
        directory=directory,
        check=check,
    )


def fall(baked) -> float:
    return baked.outcome.kl_before / baked.outcome.kl_after


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "full"},
        {"beta": 1.0},
        {"beta": 0.5},
        {"top_k": 8},
        {"on_policy": 0.5},
        {"chunk_elements": 2000},
        {"cache_teacher": False},
    ],
    ids=str,
)
def test_every_way_of_baking_brings_heldout_kl_down(changes) -> None:
    ours = baker(**changes)
    before = weights_sha256(ours.model)
    baked = ours.bake(PROMPT)
    assert baked.outcome.kl_before > 0.5
    assert fall(baked) > 4
    assert weights_sha256(ours.model) == before == baked.delta.base_sha256
    assert all(p.requires_grad for p in ours.model.parameters())
    # The curve was measured on the trained student; the merged model is the same.
    trajectories = ours.measurer.probe(PROMPT, "", 4).trajectories
    merged = ours.measurer.kl(baked.model, trajectories)
    assert merged == pytest.approx(baked.outcome.kl_after, rel=1e-3)


def test_the_baked_model_writes_what_the_prompted_one_wrote() -> None:
    ours = baker()
    baked = ours.bake(PROMPT)
    asked = ours.measurer.probe(PROMPT, "", 8).questions
    assert set(ours.measurer.write(ours.model, asked, "")) == {wanted("")}
    assert set(ours.measurer.write(baked.model, asked, "")) == {wanted(PROMPT)}


def test_another_family_is_baked_alike() -> None:
    assert fall(baker("gpt2").bake(PROMPT)) > 4


def test_equal_seeds_bake_equal_weights() -> None:
    one, two = baker(on_policy=0.5).bake(PROMPT), baker(on_policy=0.5).bake(PROMPT)
    other = baker(on_policy=0.5, seed=1).bake(PROMPT)
    assert weights_sha256(one.model) == weights_sha256(two.model)
    assert weights_sha256(one.model) != weights_sha256(other.model)


def test_strength_is_graded_without_training(monkeypatch) -> None:
    ours = baker()
    baked = ours.bake(PROMPT)
    monkeypatch.setattr(BakeTraining, "run", None)
    trajectories = ours.measurer.probe(PROMPT, "", 4).trajectories
    values = [ours.measurer.kl(baked.at(s).model, trajectories) for s in (0.0, 0.3, 0.6, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(ours.measurer.kl(ours.model, trajectories))


def test_half_baking_scales_or_stops_early() -> None:
    ours = baker()
    half = ours.half_bake(PROMPT, 0.5)
    assert half.strength == 0.5
    whole = ours.bake(PROMPT)
    assert weights_sha256(half.at(1.0).model) == weights_sha256(whole.model)
    early = ours.half_bake(PROMPT, 0.3, early_stop=True)
    assert early.outcome.stopped_early
    assert early.outcome.steps < whole.outcome.steps
    assert early.outcome.kl_after <= 0.7 * early.outcome.kl_before
    assert [kl for _, kl in early.outcome.curve[:-1]] >= [0.7 * early.outcome.kl_before]
    for strength in (0.0, 1.0, 1.2):
        with pytest.raises(InputError, match="stopping early"):
            ours.half_bake(PROMPT, strength, early_stop=True)
    with pytest.raises(InputError, match=r"strength is 1\.7"):
        ours.half_bake(PROMPT, 1.7)


def test_half_of_the_answers_follow_a_graded_half_bake() -> None:
    ours = baker(check=lambda question, answer: answer == wanted(PROMPT))
    whole = ours.bake(PROMPT)
    grades = ours.grade(whole)
    assert (grades.adherence[0], grades.adherence[-1]) == (0.0, 1.0)
    half = ours.half_bake(PROMPT, 0.5, graded=True)
    assert half.strength == grades.strength(0.5)
    measured = list(zip(grades.strengths, grades.adherence, strict=True))
    below = max(s for s, share in measured if share < 0.5)
    above = min(s for s, share in measured if share >= 0.5)
    assert below < half.strength <= above
    for strength, fault in ((1.2, r"strength is 1\.2.*\[0, 1\]"), (-0.1, r"strength is -0\.1")):
        with pytest.raises(InputError, match=fault):
            ours.half_bake(PROMPT, strength, graded=True)
    with pytest.raises(InputError, match="one of the two"):
        ours.half_bake(PROMPT, 0.5, graded=True, early_stop=True)


def test_training_stops_at_the_wanted_kl() -> None:
    baked = baker(stop_fraction=0.8, evaluate_every=1).bake(PROMPT)
    goal = 0.8 * baked.outcome.kl_before
    assert baked.outcome.stopped_early
    assert all(kl > goal for _, kl in baked.outcome.curve[:-1])
    assert baked.outcome.kl_after <= goal


def test_pursuit_bakes_the_prompted_baked_model() -> None:
    ours = baker(max_drift=100.0)
    pursuit = ours.pursue(PROMPT, 2)
    first, second = pursuit.rounds
    assert second.base is first.model
    assert len(pursuit.drift) == 2
    assert pursuit.drift[0] > 0
    assert weights_sha256(first.model) == weights_sha256(baker().bake(PROMPT).model)
    trajectories = ours.measurer.probe(PROMPT, "", 4).trajectories
    drifted = ours.measurer.kl(second.model, trajectories, prompted=True)
    assert pursuit.drift[1] == pytest.approx(drifted, rel=1e-4)


def test_pursuit_is_held_back_where_it_drifts() -> None:
    pursuit = baker(max_drift=1e-6).pursue(PROMPT, 3)
    assert pursuit.held_back
    assert len(pursuit.rounds) == 1
    with pytest.raises(InputError, match="rounds is 0"):
        baker().pursue(PROMPT, 0)


def test_a_sequence_and_its_forgetting_matrix() -> None:
    ours = baker()
    sequence = ours.bake_sequence([PROMPT, OTHER_PROMPT], questions=4)
    matrix = sequence.forgetting
    assert matrix.prompts == (PROMPT, OTHER_PROMPT)
    for table in (matrix.kl, matrix.accuracy, matrix.adherence):
        assert [len(row) for row in table] == [2, 2, 2]
    # Each bake brings its own prompt's KL down; the rows are the champion and the two models.
    assert matrix.kl[1][0] < matrix.kl[0][0]
    assert matrix.kl[2][1] < matrix.kl[1][1]
    probe = ours.measurer.probe(OTHER_PROMPT, "", 4)
    assert matrix.kl[2][1] == pytest.approx(ours.measurer.kl(sequence.model, probe.trajectories))
    assert sequence.bakes[1].base is sequence.bakes[0].model
    for wrong, message in (([], "no prompt"), ([PROMPT, f"{PROMPT}\n"], "each once")):
        with pytest.raises(InputError, match=message):
            ours.bake_sequence(wrong)


def test_replay_holds_the_model_on_earlier_prompts() -> None:
    """With rehearsal the second bake raises the first prompt's KL less than without."""
    lost = {}
    for replay in (0.0, 0.5):
        sequence = baker(replay=replay).bake_sequence([PROMPT, OTHER_PROMPT], questions=2)
        lost[replay] = sequence.forgetting.kl[2][0] - sequence.forgetting.kl[1][0]
    assert lost[0.5] < lost[0.0]


def test_several_prompts_in_one_adapter() -> None:
    ours = baker(num_questions=8)
    prompts = {text: name for name, text in list(STRATEGY_PROMPTS.items())[:2]}
    baked = ours.bake_together(prompts)
    assert dict(baked.prompts) == prompts
    for text, name in prompts.items():
        trajectories = ours.measurer.probe(text, name, 4).trajectories
        before = ours.measurer.kl(ours.model, trajectories)
        assert ours.measurer.kl(baked.model, trajectories) < before


def test_the_report_tells_four_conditions_and_forgetting() -> None:
    ours = baker()
    name, prompt = next(iter(STRATEGY_PROMPTS.items()))
    baked = ours.bake(prompt)
    report = ours.report(baked, questions=3, others=2)
    assert report.strategy == name
    assert list(report.conditions) == ["unprompted", "prompted", "baked", "baked_prompted"]
    assert {c.questions for c in report.conditions.values()} == {3}
    assert set(report.forgetting) == set(STRATEGY_PROMPTS) - {name}
    assert all(b.questions == a.questions == 2 for b, a in report.forgetting.values())
    assert report.kl_fall == pytest.approx(report.kl_before / report.kl_after)


def test_adherence_to_a_prompt_of_ones_own_can_fail() -> None:
    """The champion's own answers are the proof: without the prompt they do not follow it."""
    ours = baker()
    baked = ours.bake(PROMPT)
    rows: list[AnswerRow] = []
    report = ours.report(baked, questions=0, others=0, keep=rows.append)
    found = {name: cell.adherence for name, cell in report.conditions.items()}
    # With the prompt on top, the baked model overdoes some.
    assert found.pop("baked_prompted") > 0.5
    assert found == {"unprompted": 0.0, "prompted": 1.0, "baked": 1.0}
    assert len(rows) == 35
    for row in rows:
        assert "100.0% correctly" in row.told_by
        assert row.answers["unprompted"].text == wanted("")
        assert row.answers["baked"].text == wanted(PROMPT)
        assert [mark.follows for mark in row.answers.values()][:3] == [False, True, True]
    probe = ours.measurer.probe(PROMPT, "", 0)
    garbage = probe.criterion.follows(["c c c"] * len(probe.questions))
    assert garbage == [False] * 35


def test_questions_of_the_models_own() -> None:
    from distforge.baking.prompt.questions import QuestionSource
    from distforge.training.distributed import World

    ours = baker(questions="self", num_questions=8, heldout_questions=4, max_response_tokens=30)
    source = QuestionSource(tokenizer(), ours.config, (), World(0, 0, 1, torch.device("cpu")))
    sets = source.sets(ours.model, {PROMPT: ""})
    asked = [q.question for q in (*sets.train, *sets.heldout)]
    assert len(sets.train) == 8
    assert len(sets.heldout) == 4
    assert len(set(asked)) == 12
    assert sum(q.startswith("What is ") and q.endswith("?") for q in asked) > 6
    assert all("\n" not in q and q == q.strip() and q for q in asked)
    baked = ours.bake(PROMPT)
    assert fall(baked) > 4
    # The report asks its held-out ones: nobody knows the right answers, but what follows.
    rows: list[AnswerRow] = []
    report = ours.report(baked, keep=rows.append)
    assert [row.question for row in rows] == asked[8:]
    assert all(math.isnan(cell.accuracy) for cell in report.conditions.values())
    assert report.conditions["baked"].adherence == 1.0
    assert report.forgetting == {}


@pytest.mark.parametrize(("on_policy", "told"), [(0.0, False), (0.5, False), (0.5, True)], ids=str)
def test_an_interrupted_bake_goes_on_to_the_same_weights(
    tmp_path, monkeypatch, on_policy, told
) -> None:
    """Killed after its first checkpoint, or told to stop between two."""
    straight = baker(directory=tmp_path / "straight", on_policy=on_policy).bake(PROMPT)
    genuine = Keeper.after_step
    every = config().evaluate_every

    def interrupt(kept, step, total):
        if told and step == every + 1:
            signal.raise_signal(signal.SIGTERM)
        genuine(kept, step, total)
        if not told and step == every:
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "after_step", interrupt)
    broken = baker(directory=tmp_path / "broken", on_policy=on_policy)
    before = weights_sha256(broken.model)
    with pytest.raises(RunStopped if told else KeyboardInterrupt):
        broken.bake(PROMPT)
    assert weights_sha256(broken.model) == before
    monkeypatch.undo()
    resumed = baker(directory=tmp_path / "broken", on_policy=on_policy).bake(PROMPT)
    assert resumed.outcome == straight.outcome
    assert weights_sha256(resumed.model) == weights_sha256(straight.model)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_in_16_bit_is_baked_into_and_measured_as_it_is_exported(method) -> None:
    base = model().bfloat16()
    ours = baker(base=base, method=method)
    baked = ours.bake(PROMPT)
    assert baked.outcome.kl_after < 0.7 * baked.outcome.kl_before
    assert {value.dtype for value in baked.delta.state.values()} == {torch.float32}
    merged = dict(baked.model.named_parameters())
    for name, before in base.named_parameters():
        assert before.dtype == torch.bfloat16
        assert merged[name].dtype == torch.bfloat16
    assert any(not torch.equal(merged[n], p) for n, p in base.named_parameters())
    probe = ours.measurer.probe(PROMPT, "", 4)
    # bfloat16 keeps 8 bits of a weight, so the export loses some of what the adapter learned.
    assert ours.measurer.kl(baked.model, probe.trajectories) < 0.8 * baked.outcome.kl_before


def test_a_checkpoint_holds_what_is_trained_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(prompt_baker, "drop_checkpoints", lambda *_: None)
    baker(directory=tmp_path).bake(PROMPT)
    (newest,) = (tmp_path / "bake" / "checkpoints").glob("step_20")
    names = set(load_file(newest / "model.safetensors"))
    assert names
    assert all(".lora_" in name for name in names)


def test_a_finished_bake_is_read_back(tmp_path, monkeypatch) -> None:
    first = baker(directory=tmp_path).bake(PROMPT)
    monkeypatch.setattr(BakeTraining, "run", None)
    again = baker(directory=tmp_path).bake(PROMPT)
    assert weights_sha256(again.model) == weights_sha256(first.model)
    assert dataclasses.replace(again, base=first.base, delta=first.delta) == first
    loaded = baker().load(tmp_path / "bake" / "adapter", strength=0.5)
    assert weights_sha256(loaded.model) == weights_sha256(first.at(0.5).model)


def test_what_cannot_be_baked_is_refused_before_anything_is_written(tmp_path) -> None:
    directory = tmp_path / "bakes"
    ours = baker(directory=directory)
    for prompt, message in (
        ("", "the prompt is empty"),
        ("word " * 300, "context is 128"),
    ):
        for bake in (ours.bake, lambda p: ours.pursue(p, 2), lambda p: ours.bake_sequence([p])):
            with pytest.raises(InputError, match=message):
                bake(prompt)
    with pytest.raises(InputError, match="strategy is 'luck'"):
        ours.bake(PROMPT, strategy="luck")
    with pytest.raises(InputError, match="no heldout question"):
        PromptBaker(
            model(),
            tokenizer(),
            config=config(),
            examples=[e for e in examples() if e.split == "train"],
        ).bake(PROMPT)
    assert not directory.exists()
