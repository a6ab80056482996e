"""What holds after any fault: a known exit status and one sentence, nothing lost, the same end."""

from __future__ import annotations

import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distforge.errors import InputError
from distforge.registry.manifest import verify_manifest
from distforge.training.checkpoint import verify_checkpoint
from tests.faults.forking_server import Ended, Fault, Mode, Server
from tests.faults.short_runs import NAME, Case
from tests.faults.tracing import Call, Planned, injected, name_of, plan, read_log

_CHECKPOINT = re.compile(r"step_\d+")
_KEPT = 2
_NO_TRACEBACK = ("Traceback", "Exception ignored", "Exception in thread")


@dataclass(frozen=True)
class Broken:
    """A promise that a fault broke."""

    fault: str
    what: str


@dataclass
class Tally:
    """What was injected, by the error's name and the kind of call, and what broke."""

    counts: dict[str, int] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def count(self, key: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1

    @property
    def faults(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        lines = [f"{broken.fault}: {broken.what}" for broken in self.broken]
        return f"{self.faults} faults, {len(lines)} broken promises\n" + "\n".join(lines)


class Trial:
    """One case, undisturbed once and then broken in many ways.

    Args:
        server: runs its commands. work: an empty folder.
    """

    def __init__(self, case: Case, server: Server, work: Path) -> None:
        self.case, self._server, self._work = case, server, work
        self._folder, self._log = work / "runs", work / "log"
        self.tally = Tally()
        ended = self._start(Fault(self._folder, self._log))
        self.seconds, self.status = ended.seconds, ended.status
        assert ended.status in case.statuses, ended.said
        self.calls = read_log(self._log)
        self.expected: object = None
        self.expected = self._product()

    def faults(self) -> list[Planned]:
        """All that can be put into it."""
        return plan(self.calls, self._folder, self.case.database_share)

    def inject(self, planned: Planned) -> None:
        """Put the fault in, and hold what follows against the promises."""
        fault = Fault(self._folder, self._log, planned.mode, planned.call, planned.choice)
        ended = self._start(fault)
        calls = read_log(self._log)
        hit = injected(calls)
        assert hit, f"{planned}: the run ended before it got there: {ended}"
        key = f"{hit[0].kind} {name_of(hit[0].error)}"
        self.tally.count(key)
        expected = (-signal.SIGKILL,) if planned.mode is Mode.KILL else self.case.statuses
        is_anew = planned.mode in (Mode.KILL, Mode.LASTING)
        self._judge(f"{planned}: {key}", ended, calls, expected, is_anew)

    def kill(self, *moments: float) -> None:
        """SIGKILL after so many seconds, then as often while it is taken up again; it may have
        ended by then."""
        for number, seconds in enumerate(moments):
            self.tally.count("SIGKILL at a moment")
            if number == 0:
                ended = self._start(Fault(self._folder, self._log), seconds)
            else:
                fault = Fault(self._folder, self._log)
                ended = self._server.run(
                    self.case.again, self._folder, fault=fault, kill_after=seconds
                )
            if ended.status != -signal.SIGKILL:
                break
        name = f"killed after {', '.join(f'{seconds:.3f}' for seconds in moments)} s"
        statuses = (*self.case.statuses, -signal.SIGKILL)
        self._judge(name, ended, read_log(self._log), statuses, is_anew=True)

    def _start(self, fault: Fault, kill_after: float | None = None) -> Ended:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)
        self.case.prepare(self._folder)
        self._log.touch()
        return self._server.run(self.case.run, self._folder, fault=fault, kill_after=kill_after)

    def _judge(
        self,
        name: str,
        ended: Ended,
        calls: Sequence[Call],
        statuses: Sequence[int],
        is_anew: bool,
    ) -> None:
        found = [*_outcome_faults(ended, statuses), *_lost(self._folder / NAME, calls)]
        if not self.case.is_whole(self._folder):
            found.append("what was finished before is gone")
        found += self._end_state(is_anew)
        self.tally.broken += [Broken(name, what) for what in found]

    def _end_state(self, is_anew: bool) -> list[str]:
        """What is wrong with the end, after the user went on."""
        if not self.case.is_finished(self._folder):
            go_on = self.case.anew if is_anew and self.case.anew else self.case.again
            again = self._server.run(go_on, self._folder)
            if again.status not in (0, self.status):
                return [f"going on ended with {again.status}: {_last(again.said)}"]
        product = self._product()
        if product == self.expected:
            return []
        return [f"the product is another one: {repr(product)[:600]}"]

    def _product(self) -> object:
        """Read by a process of its own: databases stay open, and this one sees many of them."""
        file = self._work / "product"
        file.unlink(missing_ok=True)
        ended = self._server.run(_keep, self.case.product, self._folder, file)
        return pickle.loads(file.read_bytes()) if ended.status == 0 else _last(ended.said)


def _keep(product: Callable[[Path], object], folder: Path, file: Path) -> int:
    file.write_bytes(pickle.dumps(product(folder)))
    return 0


def _outcome_faults(ended: Ended, statuses: Sequence[int]) -> Iterator[str]:
    if ended.status not in statuses:
        yield f"exit status {ended.status}: {_last(ended.said)}"
    for sign in _NO_TRACEBACK:
        if sign in ended.said and ended.status in statuses:
            yield f"{sign!r} on stderr with status {ended.status}: {_last(ended.said)}"
    errors = [line for line in ended.said.splitlines() if line.startswith("error")]
    if ended.status == 2 and len(errors) != 1:
        yield f"{len(errors)} sentences with status 2: {ended.said!r}"


def _lost(run: Path, calls: Sequence[Call]) -> Iterator[str]:
    """Checkpoints that had their names are there, as far as they are kept, and every one verifies;
    so is the model, once it had its own."""
    root = run / "checkpoints"
    got_names = [
        call.other
        for call in calls
        if call.kind == "rename"
        and not call.error
        and call.path.suffix == ".tmp"
        and call.other.parent == root
        and _CHECKPOINT.fullmatch(call.other.name)
    ]
    for path in got_names[-_KEPT:]:
        if not path.is_dir():
            yield f"{path.name} was announced and is gone"
    if root.is_dir():
        for path in sorted(root.iterdir()):
            if _CHECKPOINT.fullmatch(path.name):
                yield from _faults_of(path, verify_checkpoint)
    if (run / "summary.json").exists():
        yield from _faults_of(run / "model", verify_manifest)


def _faults_of(directory: Path, verify: Callable[[Path], object]) -> Iterator[str]:
    try:
        verify(directory)
    except InputError as error:
        yield f"{directory.name} does not verify: {error}"


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:]
