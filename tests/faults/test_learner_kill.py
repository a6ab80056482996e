"""Step 2's learner under SIGKILL, its rollouts on a Ray actor: it resumes to the same weights.

The run that it is held against was not killed and has no actor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import RL

ROOT = Path(__file__).parents[2]
DEADLINE = 240.0
STEPS = 6


CONFIG = """
name = "rl"
baked = "{baked}"
checkpoint_every = 1
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


def command(settings: Path, output: Path, actors: int) -> list[str]:
    script = str(ROOT / "launch" / "step2.py")
    more = [f"--output={output}", f"--rollouts.num-actors={actors}"]
    return [sys.executable, script, "--config", str(settings), *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        said = process.communicate(timeout=DEADLINE)[0]
    finally:
        process.kill()
    assert process.returncode in (0, 3), said  # 3: not better than the baked model
    return said


def test_a_killed_learner_resumes_to_the_same_weights(config: Path, tmp_path: Path) -> None:
    settings = tmp_path / "rl.toml"
    baked = config.parent / "champion"
    settings.write_text(CONFIG.format(baked=baked, episodes=4 * STEPS), encoding="utf-8")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(start(command(settings, straight, actors=0)))
    process = start(command(settings, broken, actors=1))
    limit = time.monotonic() + DEADLINE
    while not (broken / "rl" / "checkpoints" / "step_3").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (broken / "rl" / "summary.json").exists(), "it ended before it was killed"
    finish(start(command(settings, broken, actors=1)))
    weights = f"rl/checkpoints/step_{STEPS}/model.safetensors"
    assert (straight / weights).read_bytes() == (broken / weights).read_bytes()
    rewards = [
        {r.step: r.metrics[RL["reward"]] for r in read_metrics(path) if RL["reward"] in r.metrics}
        for path in (run / "rl" / "metrics.jsonl" for run in (straight, broken))
    ]
    assert rewards[0] == rewards[1]
    assert set(rewards[0]) == set(range(1, STEPS + 1))
