"""Runs of bench_grokking that survive an interruption: one JSON object a line, appended as made."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modular_arithmetic import Setting, Task, train

from distforge import durable
from distforge.config import config_sha256
from distforge.optim import OptimizerConfig, build_optimizer


@dataclass(frozen=True)
class Run:
    """A finished run: ``curve[i]`` is the held-out accuracy at step (i + 1) evaluate_every.

    seconds: of processor time, which a busy machine leaves as it is.
    """

    lr: float
    seed: int
    curve: list[float]
    seconds: float


class Records:
    """Does a run once: one that the file holds with all the same settings is read, not repeated.

    path: the file, or None to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in durable.read_lines(path):
                record = json.loads(line)
                self._known[_key(record)] = record

    def run(
        self,
        task: Task,
        setting: Setting,
        name: str,
        config: OptimizerConfig,
        lr: float,
        seed: int,
    ) -> Run:
        """The run of optimizer ``config``, called ``name``; says on the console that it is done."""
        record: dict[str, Any] = {
            "task": task.name,
            "optimizer": name,
            "lr": lr,
            "seed": seed,
            "config_sha256": config_sha256(config),
            "setting": asdict(setting),
        }
        known = self._known.get(_key(record))
        if known is None:
            began = time.process_time()
            curve = train(task, setting, lambda model: build_optimizer(model, config), seed)
            known = record | {
                "seconds": round(time.process_time() - began, 2),
                "curve": [round(accuracy, 4) for accuracy in curve],
            }
            self._keep(known)
        print(
            f"{task.name}: {name} at {lr:g}, seed {seed}: "
            f"{len(known['curve']) * setting.evaluate_every} steps, "
            f"accuracy {known['curve'][-1]:.1%}, {known['seconds']:.0f} s",
            flush=True,
        )
        return Run(lr, seed, known["curve"], known["seconds"])

    def _keep(self, record: dict[str, Any]) -> None:
        self._known[_key(record)] = record
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with durable.AppendOnly(self._path) as lines:
                lines.write(json.dumps(record, ensure_ascii=False))


def _key(record: dict[str, Any]) -> str:
    names = ("task", "optimizer", "lr", "seed", "config_sha256", "setting")
    return json.dumps([record[name] for name in names], sort_keys=True)
