"""Processes that write to a registry, forked from one that has imported MLflow once.

    python -m tests.faults.registry_processes write VERSIONS URI DIRECTORY   many writers at once
    python -m tests.faults.registry_processes kill all DIRECTORY    killed all along a publish
    python -m tests.faults.registry_processes kill kinds DIRECTORY  once after each kind of change

Each prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import mlflow  # noqa: F401 - imported here so that the forks have it

from distforge.registry import ModelRegistry
from distforge.registry.spool import Spool
from distforge.registry.store import Store, source_commit

WRITERS = 8
# Of MLflow's calls, those that change what is stored; between two of them nothing lasting happens.
CHANGES = {
    "create_registered_model",
    "create_experiment",
    "create_run",
    "log_metric",
    "create_model_version",
    "set_terminated",
    "set_model_version_tag",
    "set_registered_model_alias",
}


def make_model(path: Path, weights: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_text(weights)
    return path


def fork(action: Callable[[], object]) -> int:
    """The process id of a child that does ``action`` and ends without the parent's clean-up."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def write(versions: int, uri: str, root: Path) -> dict[str, object]:
    """Eight writers of ``versions`` models each, then eight of one and the same model."""

    def many(writer: int) -> None:
        ours = ModelRegistry(uri)
        found = []
        for number in range(versions):
            model = make_model(root / f"{writer}-{number}", f"{writer} {number}")
            metadata = {"writer": str(writer), "metrics": {"number": float(number)}}
            found.append(ours.register_model(3, 1, "crowd", model, metadata))
        same = make_model(root / f"same-{writer}", "the same")
        found.append(ours.register_model(2, 0, "same", same))
        (root / f"{writer}.json").write_text(json.dumps(found))

    source_commit()
    children = [fork(lambda w=w: many(w)) for w in range(WRITERS)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    files = (root / f"{writer}.json" for writer in range(WRITERS))
    said = [json.loads(f.read_text()) for f in files if f.exists()]
    ours = ModelRegistry(uri)
    return {
        "statuses": statuses,
        "said": [version for theirs in said for version in theirs[:versions]],
        "same": [theirs[versions] for theirs in said],
        "held": {v.version: [v.tags["writer"], v.metrics["number"]] for v in ours.find("crowd")},
        "only": [v.version for v in ours.find("same")],
    }


def note(root: Path) -> Spool:
    """A spool with a champion and a model made of it."""
    ours = Spool(root / "registry.spool.jsonl")
    champion = make_model(root / "champion", "champion")
    baked = make_model(root / "baked", "baked")
    key = ours.register(2, 0, "champion", champion, {"source": "spooled"}, aliases=("champion",))
    ours.register(
        3,
        1,
        "baked_reasoning",
        baked,
        {"source": "spooled", "metrics": {"accuracy_overall": 0.9}},
        parent_key=key,
        aliases=("baked-latest",),
        best=("baked-best", "accuracy_overall"),
    )
    return ours


def replay_until(root: Path, last: int) -> list[str]:
    """Replay a spool and be killed right after the ``last`` change (0: before any); the changes."""
    changes: list[str] = []

    def happened(name: str) -> None:
        changes.append(name)
        if len(changes) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    genuine_call, genuine_write = Store._call, Spool._write

    def call(self, method, *arguments, **options):
        result = genuine_call(self, method, *arguments, **options)
        if getattr(method, "__name__", "") in CHANGES:
            happened(method.__name__)
        return result

    def write_line(self, record):
        genuine_write(self, record)
        happened("spool")

    ours = note(root)
    opened = ModelRegistry(root / "registry.db")
    Store._call, Spool._write = call, write_line
    if last == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    ours.replay(opened)
    return changes


def kill(root: Path, every: bool) -> list[dict[str, object]]:
    """Kill a publish after each of its changes; what the registry holds after the next replay.

    Unless ``every``, of changes of one kind only the first and the last are taken.
    """
    source_commit()  # cached, so that no fork has to ask git
    ModelRegistry(root / "empty" / "registry.db")
    listed = root / "changes.json"
    whole = shutil.copytree(root / "empty", root / "whole")
    os.waitpid(fork(lambda: listed.write_text(json.dumps(replay_until(whole, -1)))), 0)
    changes = json.loads(listed.read_text())
    outcomes = []
    after = ["nothing", *changes]
    for last in range(len(changes)):  # after the very last, everything is settled
        if not every and after[last] in after[:last] and after[last] in after[last + 1 : -1]:
            continue
        place = shutil.copytree(root / "empty", root / str(last))
        _, status = os.waitpid(fork(lambda p=place, n=last: replay_until(p, n)), 0)
        waiting = Spool(place / "registry.spool.jsonl")
        before = len(waiting.pending())
        ours = ModelRegistry(place / "registry.db")
        for _ in range(2):  # the second finds nothing to do
            waiting.replay(ours)
        found = {v.version: v for v in ours.find()}
        baked = found["baked_reasoning/1"]
        outcomes.append(
            {
                "after": after[last],
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                "pending_before": before,
                "pending": len(waiting.pending()),
                "failed": waiting.failed(),
                "versions": sorted(found),
                "aliases": {name: v.aliases for name, v in found.items()},
                "metrics": baked.metrics,
                "parent": baked.parent,
            }
        )
    return outcomes


if __name__ == "__main__":
    task, how, *rest = sys.argv[1:]
    if task == "write":
        print(json.dumps(write(int(how), rest[0], Path(rest[1]))))
    else:
        print(json.dumps(kill(Path(rest[0]), how == "all")))
