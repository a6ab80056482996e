"""Step 2's learner under SIGKILL, its rollouts on a Ray actor: it resumes to the same weights.

The run that it is held against was not killed and has no actor.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import RL
from distforge.training.distributed import World
from tests.distributed.harness import _CONTEXT, run_ranks

DEADLINE = 240.0
STEPS = 6


CONFIG = """
name = "rl"
baked = "{baked}"
checkpoint_every = 1
keep_checkpoints = true
[data]
num_examples = 140
[thought]
max_tokens = 6
closing = "learned"
[episodes]
episodes = {episodes}
batch_size = 4
thoughts = 2
episodes_per_request = 2
warmup_episodes = 4
[engine]
dtype = "float32"
[probe]
every_steps = 100
items = 4
coherence_items = 2
min_sampled_accuracy = 0.0
[telemetry]
wandb_mode = "disabled"
[registry]
enabled = false
"""


def think(_world: World | None, settings: Path, output: Path, actors: int) -> int:
    more = [f"--output={output}", f"--rollouts.num-actors={actors}"]
    return main(["think", "--config", str(settings), *more])


def finish(settings: Path, output: Path, actors: int) -> None:
    [status] = run_ranks(1, think, settings, output, actors, deadline_seconds=DEADLINE)
    assert status in (0, 3)  # 3: not better than the baked model


@pytest.mark.nightly
def test_a_killed_learner_resumes_to_the_same_weights(config: Path, tmp_path: Path) -> None:
    settings = tmp_path / "rl.toml"
    baked = config.parent / "champion"
    settings.write_text(CONFIG.format(baked=baked, episodes=4 * STEPS), encoding="utf-8")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(settings, straight, actors=0)
    process = _CONTEXT.Process(target=think, args=(None, settings, broken, 1))
    process.start()
    limit = time.monotonic() + DEADLINE
    while not (broken / "rl" / "checkpoints" / "step_3").exists():
        process.join(0.01)
        assert process.exitcode is None, f"it ended with {process.exitcode}"
        assert time.monotonic() < limit
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (broken / "rl" / "summary.json").exists(), "it ended before it was killed"
    finish(settings, broken, actors=1)
    weights = f"rl/checkpoints/step_{STEPS}/model.safetensors"
    assert (straight / weights).read_bytes() == (broken / weights).read_bytes()
    rewards = [
        {r.step: r.metrics[RL["reward"]] for r in read_metrics(path) if RL["reward"] in r.metrics}
        for path in (run / "rl" / "metrics.jsonl" for run in (straight, broken))
    ]
    assert rewards[0] == rewards[1]
    assert set(rewards[0]) == set(range(1, STEPS + 1))
