"""Plants known faults, one after another, and sees whether the tests notice.

    python tests/mutations/plant.py [--only NAME ...] [--list] [--jobs N] [--json FILE]

Works on a temporary copy of the tree: what git tracks or would, and the built extension. The tests
that ``faults.toml`` names run once without a fault and must pass; then each fault is planted alone
and must make one of its tests fail. Exit status 1 where a fault survives, or where the list no
longer fits the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("faults.toml")
# Beyond the time-out that pytest gives each test: one that hangs is ended, and reported, by pytest.
DEADLINE_SECONDS = 400.0
CLEAN_DEADLINE_SECONDS = 1800.0
# pytest's exit status: all passed, and some failed. Others mean that it could not run them.
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Fault:
    """One change of the source, and the tests that ought to fail of it.

    find: stands exactly once in ``file``; replace: takes its place. why: what a user would suffer.
    native: the extension has to be built again.
    """

    name: str
    file: str
    find: str
    replace: str
    why: str
    tests: tuple[str, ...]
    native: bool = False

    def planted(self, text: str) -> str:
        """``text`` of the file with the fault in it; ValueError where it does not fit."""
        count = text.count(self.find)
        if count != 1:
            raise ValueError(
                f"{self.name}: its text is found {count} times in {self.file}, expected once; "
                "adapt faults.toml to the source"
            )
        return text.replace(self.find, self.replace)


@dataclass(frozen=True)
class Verdict:
    """What became of a fault. ``by``: the first test that failed, or what happened instead."""

    name: str
    caught: bool
    by: str
    seconds: float

    def __str__(self) -> str:
        outcome = f"caught by {self.by}" if self.caught else f"SURVIVED: {self.by}"
        return f"{self.name}: {outcome} ({self.seconds:.1f} s)"


def read_faults(path: Path = LIST) -> list[Fault]:
    """The list; TypeError where an entry has an unknown key or lacks one."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


class Tree:
    """A copy of the source tree in which faults are planted; one process at a time uses it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._output = root.with_suffix(".log")

    @classmethod
    def of_source(cls, root: Path) -> Tree:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
        names = [name for name in listed.decode().split("\0") if name]
        names += [str(path.relative_to(ROOT)) for path in ROOT.glob("distforge/_C*.so")]
        for name in names:
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        return cls(root)

    def copy(self, root: Path) -> Tree:
        shutil.copytree(self.root, root)
        return Tree(root)

    def run(self, tests: Sequence[str], options: Sequence[str], deadline: float) -> tuple[int, str]:
        """pytest's exit status, and what it said; status -1 where it hung."""
        words = [*tests, *options, "-q", "-rfE", "-m", "not nightly and not gpu"]
        return self._call(["-m", "pytest", "-p", "no:cacheprovider", *words], deadline)

    def check(self, fault: Fault) -> Verdict:
        """Plant the fault, run its tests, take it out again."""
        began = time.monotonic()
        with self._planted(fault):
            status, said = self._build() if fault.native else (PASSED, "")
            if status != PASSED:
                return Verdict(fault.name, False, f"does not compile\n{said}", _since(began))
            status, said = self.run(fault.tests, ["-x"], DEADLINE_SECONDS)
        failed = failures(said)
        caught = status == FAILED and bool(failed)
        by = failed[0] if caught else f"pytest ended with {status}\n{said[-2000:]}"
        if status == PASSED:
            by = f"{', '.join(fault.tests)} passed"
        return Verdict(fault.name, caught, by, _since(began))

    @contextmanager
    def _planted(self, fault: Fault) -> Iterator[None]:
        path = self.root / fault.file
        before, times = path.read_text(encoding="utf-8"), path.stat()
        built = {module: module.with_suffix(".whole") for module in self._modules(fault.native)}
        for module, kept in built.items():
            shutil.copy2(module, kept)
        path.write_text(fault.planted(before), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")
            # Python's caches of the whole file count again. ninja has to see a newer one instead,
            # because the object that it keeps is that of the fault.
            if not fault.native:
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            for module, kept in built.items():
                os.replace(kept, module)

    def _modules(self, native: bool) -> list[Path]:
        return list(self.root.glob("distforge/_C*.so")) if native else []

    def _build(self) -> tuple[int, str]:
        return self._call(["setup.py", "build_ext", "--inplace"], DEADLINE_SECONDS)

    def _call(self, words: Sequence[str], deadline: float) -> tuple[int, str]:
        settings = {"PYTHONPATH": str(self.root), "DISTFORGE_BUILD_CUDA": "0"}
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **settings}
        with open(self._output, "w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(deadline)
            except subprocess.TimeoutExpired:
                status = -1
            finally:
                _end_group(process)
            output.seek(0)
            return status, output.read()


def failures(said: str) -> list[str]:
    """The tests that pytest's summary names as failed or in error."""
    marks = ("FAILED ", "ERROR ")
    lines = [line for line in said.splitlines() if line.startswith(marks)]
    return [line.split(" ", 1)[1].split(" - ", 1)[0] for line in lines]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ranks and servers that a failed test left behind must not slow down the next."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def check_clean(tree: Tree, faults: Sequence[Fault]) -> list[str]:
    """The named tests that fail without any fault."""
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    status, said = tree.run(tests, [], CLEAN_DEADLINE_SECONDS)
    if status == PASSED:
        return []
    return failures(said) or [f"pytest ended with {status}\n{said[-2000:]}"]


def check_faults(
    tree: Tree, faults: Sequence[Fault], jobs: int, folder: Path, began: float
) -> list[Verdict]:
    """A verdict of each, told as it falls; ``jobs`` copies of the tree work side by side."""
    free: queue.Queue[Tree] = queue.Queue()
    for each in [tree, *(tree.copy(folder / f"tree{i}") for i in range(1, jobs))]:
        free.put(each)

    def check(fault: Fault) -> Verdict:
        mine = free.get()
        try:
            return mine.check(fault)
        finally:
            free.put(mine)

    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(check, fault) for fault in faults]):
            verdicts.append(done.result())
            say(began, f"{len(verdicts)}/{len(faults)} {verdicts[-1]}")
    return verdicts


def say(began: float, line: str) -> None:
    print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)


def chosen(faults: Sequence[Fault], only: Sequence[str]) -> list[Fault]:
    unknown = set(only) - {fault.name for fault in faults}
    if unknown:
        raise SystemExit(f"no fault is called {', '.join(sorted(unknown))}; --list names them")
    return [fault for fault in faults if not only or fault.name in only]


def misfits(faults: Sequence[Fault]) -> list[str]:
    """Why entries do not fit the tree."""
    found = []
    for fault in faults:
        try:
            fault.planted((ROOT / fault.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.append(str(error))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these faults alone")
    parser.add_argument("--list", action="store_true", help="name the faults and plant none")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time, a copy each")
    parser.add_argument("--json", type=Path, help="write the verdicts there")
    options = parser.parse_args()
    faults = chosen(read_faults(), options.only)
    if options.list:
        print("\n".join(f"{fault.name}: {fault.file}: {fault.why}" for fault in faults))
        return 0
    if wrong := misfits(faults):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distforge-faults-") as name:
        folder = Path(name)
        tree = Tree.of_source(folder / "tree0")
        if failed := check_clean(tree, faults):
            print("these fail without any fault:", *failed, sep="\n", file=sys.stderr)
            return 1
        say(began, "all named tests pass without a fault")
        verdicts = check_faults(tree, faults, options.jobs, folder, began)
    survived = [verdict.name for verdict in verdicts if not verdict.caught]
    say(began, f"{len(verdicts) - len(survived)} of {len(verdicts)} faults were caught")
    if survived:
        print("survived:", *survived, sep="\n")
    if options.json:
        told = {"seconds": _since(began), "faults": [asdict(verdict) for verdict in verdicts]}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
