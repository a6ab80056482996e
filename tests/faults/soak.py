"""A long run under all faults at once: kills, stops, a registry that goes, a disk that fills.

    python -m tests.faults.soak SECONDS DIRECTORY

prints one line of JSON. A third of the time goes to the same run undisturbed, whose weights it must
end with; from then on one run after the other is disturbed. Each begins with a full disk, loses its
registry as soon as it has one, and has its first session killed, so that however short a soak is,
it has met all.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from distforge.registry import ModelRegistry
from distforge.registry.spool import Spool
from distforge.training.run_record import REGISTRY_FILE, SPOOL_FILE
from tests.faults.forking_server import DEADLINE_SECONDS, Fault, Mode, Server, serving
from tests.faults.short_runs import is_finished, step1, weights
from tests.faults.tracing import read_log
from tests.shared import VARIABLE

SEED = 24
# Samples of a session's memory before these are of its start, which loads and compiles.
_SETTLED_SECONDS = 10.0


@dataclass
class Soaked:
    """What happened, and what came of it.

    refused_calls: those that met a full disk. watched_seconds: the longest session, after its
    start; growth: of its memory, from the first quarter's median to the last's; handles: open files
    at most, in those quarters.
    """

    runs: int = 0
    steps: int = 0
    sessions: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    full_disks: int = 0
    refused_calls: int = 0
    lost_registries: int = 0
    same_weights: bool = True
    registered: bool = True
    watched_seconds: float = 0.0
    growth: float = 1.0
    handles: tuple[int, int] = (0, 0)


def soak(seconds: float, directory: Path) -> Soaked:
    """Run for about ``seconds``."""
    began = time.monotonic()
    # A third of it takes one run, and a busy machine can be several times slower than at first.
    with serving(directory, max(DEADLINE_SECONDS, 2 * seconds)) as server:
        shortest, steps = _steps_in(server, directory, seconds / 3)
        done = Soaked(steps=steps)
        straight = directory / "straight"
        straight.mkdir()
        first = server.run(step1, straight, *_words(steps))
        assert first.status == 3, first.said
        sessions: list[list[_Sample]] = []
        while not done.runs or time.monotonic() < began + seconds:
            # Of its own: this process keeps connections to the registries that it has looked at.
            broken = directory / f"broken{done.runs}"
            broken.mkdir()
            spans = shortest, first.seconds
            sessions += _disturb(server, broken, done, began + seconds, spans)
            done.runs += 1
            done.same_weights &= weights(broken) == weights(straight)
            done.registered &= _is_registered(broken)
            shutil.rmtree(broken)
    _trend(sessions, done)
    return done


def _words(steps: int) -> list[str]:
    every = max(2, steps // 60)
    return [
        f"--training.max-steps={steps}",
        f"--checkpoint-every={every}",
        f"--evaluation.every-steps={5 * every}",
        "--registry.enabled",
        "--registry.wait-seconds=5",
    ]


def _steps_in(server: Server, directory: Path, seconds: float) -> tuple[float, int]:
    """How long a run of few steps takes, and how many take ``seconds``."""
    took = []
    for steps in (20, 120):
        folder = directory / f"trial{steps}"
        folder.mkdir()
        took.append(server.run(step1, folder, *_words(steps)).seconds)
        shutil.rmtree(folder)
    each = max(1e-4, (took[1] - took[0]) / 100)
    return took[0], max(120, round((seconds - took[0]) / each))


@dataclass
class _Sample:
    """own: bytes that no other process holds; allocated: those, and what it shares with the process
    that it was forked from. Only the latter grow by allocating alone: whoever touches a shared page
    owns it.
    """

    seconds: float
    own: int
    allocated: int
    handles: int


def _disturb(
    server: Server, folder: Path, done: Soaked, deadline: float, spans: tuple[float, float]
) -> list[list[_Sample]]:
    """Sessions until the run has ended; after the deadline one goes on, in which only comes what
    has not been yet.

    spans: how long a run of few steps takes, and this one.
    """
    rng = random.Random(SEED + done.runs)
    flag, log = folder.with_suffix(".full"), folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    weather = _Weather(rng, folder, flag, done, min(60.0, spans[1]))
    sessions: list[list[_Sample]] = []
    while not is_finished(folder):
        calm = done.kills > 0 and time.monotonic() > deadline
        fault = Fault(folder, log, Mode.WHILE, full_while=flag)
        # Most sessions are killed early; some live long enough to show what they hold on to.
        share = rng.choice((0.1, 0.2, 0.4, 1.0)) * rng.random() if sessions else 0.1
        patience = None if calm else spans[0] * rng.random() + spans[1] * share
        with weather.around(calm), _watched(server) as samples:
            ended = server.run(step1, folder, *_words(done.steps), fault=fault, kill_after=patience)
        sessions.append(samples)
        done.sessions += 1
        done.kills += ended.status == -signal.SIGKILL
        name = str(ended.status)
        done.statuses[name] = done.statuses.get(name, 0) + 1
        known = (0, 2, 3, 75, -signal.SIGKILL)
        assert ended.status in known, ended.said
        assert "Traceback" not in ended.said, ended.said
    done.refused_calls += len(read_log(log))
    return sessions


class _Weather:
    """Beside sessions, the disk fills and the registry goes, for seconds each."""

    def __init__(
        self, rng: random.Random, folder: Path, flag: Path, done: Soaked, span: float
    ) -> None:
        self._rng, self._flag, self._done, self._span = rng, flag, done, span
        self._registry, self._away = folder / REGISTRY_FILE, folder / "registry.away"
        self._is_new = {"disk": True, "registry": True}

    @contextmanager
    def around(self, calm: bool) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._change, args=(over, calm))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _change(self, over: threading.Event, calm: bool) -> None:
        while not over.is_set() and not (calm and not any(self._is_new.values())):
            if self._is_new["disk"]:
                self._fill(over)
            elif self._is_new["registry"]:  # until there is one, the disk has room for it
                if self._registry.is_file():
                    self._lose(over)
                over.wait(0.05)
            else:
                over.wait(self._rng.uniform(0.01, 0.1) * self._span)
                change = self._fill if self._rng.random() < 0.3 else self._lose
                if self._registry.is_file() and not over.is_set():
                    change(over)

    def _fill(self, over: threading.Event) -> None:
        self._is_new["disk"] = False
        self._done.full_disks += 1
        self._flag.touch()
        over.wait(self._rng.uniform(0.1, 1.0))
        self._flag.unlink()

    def _lose(self, over: threading.Event) -> None:
        self._is_new["registry"] = False
        self._done.lost_registries += 1
        self._registry.rename(self._away)
        self._registry.mkdir()
        over.wait(self._rng.uniform(0.5, 3.0))
        shutil.rmtree(self._registry, ignore_errors=True)
        self._away.rename(self._registry)


@contextmanager
def _watched(server: Server) -> Iterator[list[_Sample]]:
    """Memory and open files of the session, twice a second."""
    samples: list[_Sample] = []
    over = threading.Event()
    began = time.monotonic()

    def look() -> None:
        while not over.wait(0.5):
            for child in psutil.Process(server.pid).children():
                try:
                    seconds, own = time.monotonic() - began, child.memory_full_info().uss
                    samples.append(_Sample(seconds, own, _allocated(child.pid), child.num_fds()))
                except (psutil.Error, OSError, ValueError):
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _allocated(pid: int) -> int:
    """ValueError: it has ended, and nobody has waited for it yet."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return 1024 * int(kilobytes)


def _trend(sessions: list[list[_Sample]], done: Soaked) -> None:
    longest = max(sessions, key=len)
    settled = [sample for sample in longest if sample.seconds > _SETTLED_SECONDS]
    if not settled:
        return
    done.watched_seconds = settled[-1].seconds - settled[0].seconds
    quarter = max(1, len(settled) // 4)
    first, last = settled[:quarter], settled[-quarter:]
    before, after = (statistics.median(s.allocated for s in part) for part in (first, last))
    done.growth = 1 + (after - before) / statistics.median(s.own for s in first)
    done.handles = max(s.handles for s in first), max(s.handles for s in last)


def _is_registered(folder: Path) -> bool:
    """Whether the registry has the models, whole, and nothing waits or was refused."""
    registry, spool = ModelRegistry(folder / REGISTRY_FILE), Spool(folder / SPOOL_FILE)
    spool.replay(registry)
    versions = [v.version for v in registry.find()]
    for version in versions:
        registry.verify(version)
    settled = not spool.pending() and not spool.failed()
    return settled and versions == ["baked_reasoning/1", "champion/1"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as place:
        os.environ.setdefault(VARIABLE, str(Path(place, "shared")))
        print(json.dumps(asdict(soak(float(sys.argv[1]), Path(place)))))
