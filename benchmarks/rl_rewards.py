"""Rewards of `bench_rl`, named on its runs' command lines; they note when they were asked."""

from __future__ import annotations

import random
import time
from typing import Any

from distforge.rewards.verifiers import math as verified

# How many completions, seconds of the processor, and seconds, of each call.
CALLS: list[tuple[int, float, float]] = []


def math(completions: list[Any], expected: list[str]) -> list[float]:
    """distforge's own verifier."""
    CALLS.append((len(completions), time.process_time(), time.perf_counter()))
    return verified(completions, expected)


def shuffled(completions: list[Any], expected: list[str], trainer_state: Any) -> list[float]:
    """What `math` says of the batch, dealt out at random: as many rewards, of no meaning."""
    rewards = math(completions, expected)
    random.Random(trainer_state.global_step).shuffle(rewards)
    return rewards
