"""The rows of bench_kernels.py: how they are timed, and what each is expected to reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Row

# From the table of goals: what a row is expected to reach.
GOALS = {
    "fused pass, cpu, best eager": 1.5,
    "fused pass, cpu, torch.compile": 1.0,
    "fused pass, cpu, copy of as many bytes": 0.9,
    "newton_schulz, cpu, a=1": 1.4,
    "newton_schulz, cpu, a=4": 2.1,
    "step, cpu": 2.0,
    "fused pass, cuda, copy of as many bytes": 0.85,
    "newton_schulz, cuda, a=1": 1.7,
    "newton_schulz, cuda, a=4": 2.4,
    "newton_schulz, cuda, batch": 4.0,
    "step, cuda": 5.0,
}


@dataclass
class Report:
    """The rows so far, and the ceilings measured beside them."""

    rounds: int
    device: str
    rows: list[Row] = field(default_factory=list)
    goals: dict[str, float] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def compare(
        self, work: str, goal: str, ours: Callable[[], Any], peers: dict[str, Callable[[], Any]]
    ) -> None:
        """A row for each peer. The goal is for the first."""
        times = self.times({"ours": ours, **peers})
        for number, name in enumerate(peers):
            self.add(work, "" if number else goal, times["ours"], name, times[name])

    def add(self, work: str, goal: str, ours: float, peer: str, value: float) -> None:
        self.rows.append(Row(work, ours * 1e3, peer, value * 1e3, "ms", value / ours))
        if goal in GOALS:
            self.goals[f"{work} | {peer}"] = GOALS[goal]

    def times(
        self,
        works: dict[str, Callable[[], Any]],
        before: Callable[[], None] | None = None,
        rounds: int | None = None,
    ) -> dict[str, float]:
        """Median seconds of each; they take turns, and the first two rounds do not count."""
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range((rounds or self.rounds) + 2):
            for name, work in works.items():
                if before is not None:
                    before()
                self.synchronise()
                began = time.perf_counter()
                work()
                self.synchronise()
                seconds[name].append(time.perf_counter() - began)
        return {name: statistics.median(values[2:]) for name, values in seconds.items()}

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
