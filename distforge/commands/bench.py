"""``distforge bench``: the benchmarks of a checkout in quick form, one table, one page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distforge.activity import doing
from distforge.errors import InputError, require_in

__all__ = ["BenchConfig", "bench"]

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Those that need nothing but the checkout, the quickest first; a champion may have to be made for
# the last two.
NAMES: tuple[str, ...] = (
    *("zero", "kernels", "model_step", "scaling", "thoughts", "rollouts", "s5", "grokking"),
    *("staleness", "free_text", "verdict", "faults", "baking", "step"),
)
_LONGEST = 1 / 3  # of the time, that one of them may take


@dataclass(frozen=True)
class BenchConfig:
    """The quick form of benchmarks/, against the peers; see benchmarks/README.md for the full one.

    minutes: in all; what does not end in time is stopped, and said so.
    only: which of them, such as ``zero kernels``; by default all but those that need a model or
        another program.
    output: directory for a JSON file of each.
    page: where to write what benchmarks/results holds, measured at length on named machines, as
        one Markdown page; nothing is run then.
    """

    minutes: float = 10.0
    only: tuple[str, ...] = ()
    output: Path = Path("build/bench")
    page: Path | None = None

    def __post_init__(self) -> None:
        require_in("(0, inf)", minutes=self.minutes)
        for name in self.only:
            if name not in NAMES:
                raise InputError(f"only names {name!r}; expected some of {', '.join(NAMES)}")


def bench(config: BenchConfig) -> int:
    """Run them, or write the page; 3 where one did not end well."""
    if not BENCHMARKS.is_dir():
        raise InputError(
            "the benchmarks are not part of an installed distforge: get its repository, and give "
            "the command there"
        )
    if config.page is not None:
        script = BENCHMARKS / "results_page.py"
        return subprocess.run([sys.executable, str(script), str(config.page)]).returncode
    config.output.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * config.minutes
    table = Table("work", "ours", "peer", "its value", "unit", "ratio")
    missed = []
    for name in config.only or NAMES:
        path = config.output / f"{name}.json"
        longest = min(ends - time.monotonic(), 60 * config.minutes * _LONGEST)
        with doing(f"benchmark {name}"):
            why = _run(name, path, longest)
        if why:
            missed.append(f"{name}: {why}")
            continue
        _add(table, json.loads(path.read_text(encoding="utf-8"))["rows"])
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(
        "a ratio above 1: ours is better. Quick figures are noisy; docs/results.md has those at "
        "length."
    )
    print("\n".join(missed))
    return 3 if missed else 0


def _run(name: str, path: Path, seconds: float) -> str:
    """Measure one; why there is nothing to show, or ""."""
    if seconds <= 0:
        return "not run, the time was up"
    command = [sys.executable, str(BENCHMARKS / f"bench_{name}.py"), "--quick", "--json", str(path)]
    log = path.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            # Those that it started end with it, however it ended.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"ended with status {status}, see {log}" if status else ""


def _add(table: Table, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        numbers = [f"{row[key]:.4g}" for key in ("ours", "peer_value")]
        table.add_row(
            row["work"], numbers[0], row["peer"], numbers[1], row["unit"], f"{row['ratio']:.2f}"
        )
    table.add_section()
