"""The learner in one process: reproducible, resumable, and doing what it says."""

import dataclasses
import signal

import pytest
import torch

from distforge.errors import InputError, RunStopped
from distforge.evaluation.benchmarks import BenchmarksConfig
from distforge.quietstar import episode_batches
from distforge.quietstar.config import EpisodeConfig, ObjectiveConfig
from distforge.telemetry import RunLogger, read_metrics
from distforge.telemetry.metrics import RL, RL_ACCURACY, RL_METRICS
from distforge.training.distributed import World
from tests.benchmark_files import ARC_ROWS, GSM8K_ROWS, write_lines
from tests.thinking_cases import SILENT, learner_config, make_trainer, text_config

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def trained_weights(trainer) -> dict[str, torch.Tensor]:
    with trainer.engine.whole_model() as model:
        return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one, other) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("text", [False, True], ids=["questions", "text"])
def test_equal_runs_end_bit_by_bit_equal(tmp_path, text):
    config = text_config() if text else learner_config()
    ends = []
    for name in ("one", "two"):
        trainer = make_trainer(tmp_path / name, config, WORLD, text=text)
        outcome = trainer.train()
        assert (outcome.steps, outcome.episodes) == (6, 24)
        ends.append(trained_weights(trainer))
    assert_equal(*ends)
    before = trained_weights(make_trainer(tmp_path / "new", config, WORLD, text=text))
    assert any(not torch.equal(before[name], ends[0][name]) for name in before)


@pytest.mark.parametrize("text", [False, True], ids=["questions", "text"])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path, text):
    config = text_config() if text else learner_config()
    whole = make_trainer(tmp_path / "whole", config, WORLD, text=text)
    whole.train()
    # The checkpoint of step 4 is all that a killed process leaves.
    killed = make_trainer(tmp_path / "killed", config, WORLD, text=text)
    original = killed._after_step

    def die_after_the_checkpoint(step, total, source):
        original(step, total, source)
        if step.step == 5:
            raise KeyboardInterrupt

    killed._after_step = die_after_the_checkpoint
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make_trainer(tmp_path / "killed", config, WORLD, text=text)
    outcome = resumed.train()
    assert outcome.steps == 6
    assert_equal(trained_weights(resumed), trained_weights(whole))


def test_the_seventeen_are_logged_at_every_probe(tmp_path):
    with RunLogger(tmp_path, SILENT, {}, "tiny") as logger:
        make_trainer(tmp_path, learner_config(), WORLD, logger=logger).train()
    records = read_metrics(tmp_path / "metrics.jsonl")
    probes = [r for r in records if set(RL_METRICS) <= set(r.metrics)]
    assert [r.step for r in probes] == [3, 6]
    last = {name: value for r in records if r.step == 6 for name, value in r.metrics.items()}
    assert last[RL["episode"]] == 24
    assert last[RL["ess"]] == pytest.approx(1)
    assert 1 <= last[RL["thought_length"]] <= 4
    controls = [last[RL_ACCURACY[c]] for c in ("shuffled", "random", "filler", "none")]
    ablation = last[RL_ACCURACY["own"]] - max(controls)
    assert last[RL["anti_theater_ablation"]] == pytest.approx(ablation)
    steps = [r for r in records if RL["reward"] in r.metrics and r not in probes]
    assert [r.step for r in steps] == [1, 2, 3, 4, 5, 6]


def test_public_benchmarks_are_asked_at_every_probe_where_they_are_configured(tmp_path):
    gsm8k = write_lines(tmp_path / "gsm8k.jsonl", GSM8K_ROWS)
    arc = write_lines(tmp_path / "arc.jsonl", ARC_ROWS)
    asked = BenchmarksConfig(
        gsm8k=str(gsm8k), arc=str(arc), gsm8k_shots=1, arc_shots=1, max_new_tokens=8
    )
    with RunLogger(tmp_path, SILENT, {}, "tiny") as logger:
        make_trainer(tmp_path, learner_config(benchmarks=asked), WORLD, logger=logger).train()
    seen = {
        record.step: (record.metrics[RL["gsm8k_accuracy"]], record.metrics[RL["arc_accuracy"]])
        for record in read_metrics(tmp_path / "metrics.jsonl")
        if RL["arc_accuracy"] in record.metrics
    }
    assert list(seen) == [0, 3, 6]
    # One question of ARC is left beside the example, two of GSM8K.
    assert all(arc in (0, 1) and gsm8k in (0, 0.5, 1) for gsm8k, arc in seen.values())
    missing = BenchmarksConfig(arc=str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no benchmark at"):
        make_trainer(tmp_path / "other", learner_config(benchmarks=missing), WORLD)


def test_the_policy_moves_towards_what_is_rewarded(tmp_path, monkeypatch):
    """With the rewards' sign alone: the probability of a thought rises iff it did well."""
    config = learner_config(
        objective=ObjectiveConfig(nll_weight=0.0, entropy_bonus=0.0),
        episodes=EpisodeConfig(
            episodes=2, batch_size=2, thoughts=8, episodes_per_request=2, warmup_episodes=0
        ),
    )
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(
            config.optimizer, adamw=dataclasses.replace(config.optimizer.adamw, lr=1e-4)
        ),
    )
    trainer = make_trainer(tmp_path, config, WORLD)
    seen = []
    share = episode_batches.share_rollouts

    def keep(rollouts, world):
        seen.extend(rollouts)
        return share(rollouts, world)

    monkeypatch.setattr(episode_batches, "share_rollouts", keep)
    trainer.train()
    (rollout,) = seen
    rewards = rollout.result["rewards"].view(2, 8)
    best = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    moved = log_probs_now(trainer, rollout) - rollout.result["log_probs"].sum(dim=1)
    # First order: the step is along the sum of advantage times score.
    assert float((best * moved).sum()) > 0


def log_probs_now(trainer, rollout) -> torch.Tensor:
    """Of the rollout's thoughts, under the weights as they are now, one thought at a time."""
    found, items, result = [], trainer._plan.payload(rollout.id), rollout.result
    with trainer.engine.whole_model() as model, torch.no_grad():
        for index, row in enumerate(result["rows"].tolist()):
            item, length = items[row], int(result["lengths"][index])
            written = result["tokens"][index, :length].tolist()
            ids = torch.tensor([[*item.text, trainer._tags.open, *written]])
            logits = model.lm(input_ids=ids).logits[0, len(item.text) : -1]
            logits[:, list(trainer._tags.banned(close=False))] = -torch.inf
            log_probs = logits.log_softmax(dim=-1)
            found.append(sum(float(log_probs[i, token]) for i, token in enumerate(written)))
    return torch.tensor(found)


def test_a_run_that_is_told_to_stop_saves_and_goes_on(tmp_path):
    whole = make_trainer(tmp_path / "whole", learner_config(), WORLD)
    whole.train()
    config = learner_config(checkpoint_every=0)
    stopped = make_trainer(tmp_path / "stopped", config, WORLD)
    original = stopped._after_step

    def tell(step, total, source):
        if step.step == 3:
            signal.raise_signal(signal.SIGTERM)
        original(step, total, source)

    stopped._after_step = tell
    with pytest.raises(RunStopped, match="step 3 of 6"):
        stopped.train()
    resumed = make_trainer(tmp_path / "stopped", config, WORLD)
    resumed.train()
    assert_equal(trained_weights(resumed), trained_weights(whole))


def test_no_items_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.thinking_cases.question_like_items", lambda count, seed=0: [])
    with pytest.raises(InputError, match="no held-out item"):
        make_trainer(tmp_path, learner_config(), WORLD)
