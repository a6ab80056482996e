"""What the spool sends, and when: with the registry's calls noted instead of kept."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from distforge import durable
from distforge.errors import InputError
from distforge.registry import RegistryUnavailable, Session
from distforge.registry.spool import Spool


class Noted:
    """A registry of plain dictionaries; versions are numbered as they come."""

    def __init__(self) -> None:
        self.metadata: dict[str, Mapping[str, object]] = {}
        self.aliases: dict[str, str] = {}
        self.sessions: list[Session] = []
        self.refused: set[str] = set()
        self.away = self.disk_fails = False

    def check(self) -> None:
        if self.away:
            raise RegistryUnavailable("the registry is away")

    def record_session(self, session: Session) -> None:
        self.sessions.append(session)

    def register_model(self, phase, step, model_type, model_path, metadata) -> str:
        self.check()
        if model_type in self.refused:
            raise RegistryUnavailable(f"{model_type}: error code 403")
        if self.disk_fails:
            raise InputError(f"{model_path} cannot be read") from OSError(errno.EIO, "broken")
        if "gone" in model_path:
            raise InputError(f"{model_path} is not an exported model")
        version = f"{model_type}/{len(self.metadata) + 1}"
        self.metadata[version] = metadata
        return version

    def get(self, version: str) -> SimpleNamespace:
        metadata = self.metadata[version]
        return SimpleNamespace(metrics=metadata.get("metrics", {}), tags=metadata)

    def by_alias(self, model_type: str, alias: str) -> SimpleNamespace | None:
        return self.get(self.aliases[alias]) if alias in self.aliases else None

    def promote(self, version: str, alias: str) -> None:
        self.aliases[alias] = version


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool.jsonl")


def test_a_child_is_sent_with_the_version_of_its_parent(spool: Spool) -> None:
    registry = Noted()
    parent = spool.register(3, 1, "baked", Path("a"), {"seed": 0})
    spool.register(3, 2, "thinking", Path("b"), {"seed": 1}, parent_key=parent)
    assert spool.replay(registry) == 2
    assert registry.metadata == {
        "baked/1": {"seed": 0},
        "thinking/2": {"seed": 1, "parent": "baked/1"},
    }


def test_what_was_settled_is_not_sent_again(spool: Spool) -> None:
    registry = Noted()
    spool.register(3, 1, "baked", Path("a"), {})
    lost = spool.register(3, 1, "baked", Path("gone"), {})
    orphan = spool.register(3, 2, "thinking", Path("b"), {}, parent_key=lost)
    assert spool.replay(registry) == 3
    assert [entry["key"] for entry in spool.failed()] == [lost, orphan]
    assert spool.pending() == []
    assert spool.replay(registry) == 0
    assert list(registry.metadata) == ["baked/1"]


@pytest.mark.parametrize(
    ("accuracies", "latest", "best"),
    [((0.8, 0.7), "baked/2", "baked/1"), ((0.7, 0.8), "baked/2", "baked/2")],
)
def test_the_best_alias_moves_to_what_is_better(
    spool: Spool, accuracies: tuple[float, float], latest: str, best: str
) -> None:
    registry = Noted()
    for accuracy in accuracies:
        metadata = {"metrics": {"accuracy": accuracy}}
        wanted = {"aliases": ("baked-latest",), "best": ("baked-best", "accuracy")}
        spool.register(3, 1, "baked", Path("a"), metadata, **wanted)
    spool.replay(registry)
    assert registry.aliases == {"baked-latest": latest, "baked-best": best}


def test_an_equal_or_an_incomparable_model_is_not_the_best(spool: Spool) -> None:
    registry = Noted()
    for accuracy, data in ((0.8, "a"), (0.8, "a"), (0.9, "b"), (0.85, "a"), (None, "a")):
        metrics = {} if accuracy is None else {"accuracy": accuracy}
        metadata = {"metrics": metrics, "dataset_sha256": data}
        spool.register(3, 1, "baked", Path("a"), metadata, best=("baked-best", "accuracy"))
    spool.replay(registry)
    assert len(registry.metadata) == 5
    assert registry.aliases == {"baked-best": "baked/4"}


def make_session(name: str, status: str) -> Session:
    return Session(name, 3, 1, "/runs/a", "host", status)


def test_one_refused_entry_holds_up_its_descendants_alone(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Noted()
    registry.refused = {"secret"}
    parent = spool.register(3, 1, "secret", Path("a"), {})
    child = spool.register(3, 2, "thinking", Path("b"), {}, parent_key=parent)
    other = spool.register(3, 1, "baked", Path("c"), {})
    for _ in range(2):
        spool.replay(registry)
        assert [entry["key"] for entry in spool.pending()] == [parent, child]
    assert spool.outcome(other) == {"version": "baked/1"}
    assert caplog.text.count("error code 403") == 1
    registry.refused = set()
    assert spool.replay(registry) == 2
    assert registry.metadata["thinking/3"] == {"parent": "secret/2"}


def test_a_model_that_cannot_be_read_now_is_registered_later(spool: Spool) -> None:
    registry = Noted()
    registry.disk_fails = True
    parent = spool.register(3, 1, "baked", Path("a"), {})
    spool.register(3, 2, "thinking", Path("b"), {}, parent_key=parent)
    assert spool.replay(registry) == 0
    assert (len(spool.pending()), spool.failed()) == (2, [])
    registry.disk_fails = False
    assert spool.replay(registry) == 2
    assert registry.metadata["thinking/2"] == {"parent": "baked/1"}


def test_a_child_waits_where_its_parent_cannot_be_looked_up(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Noted()
    parent = spool.register(3, 1, "baked", Path("a"), {})
    child = spool.register(3, 2, "thinking", Path("b"), {}, parent_key=parent)
    with monkeypatch.context() as unreadable:
        unreadable.setattr(Spool, "outcome", lambda *_: None)
        assert spool.replay(registry) == 1
    assert ([entry["key"] for entry in spool.pending()], spool.failed()) == ([child], [])
    assert spool.replay(registry) == 1
    assert registry.metadata["thinking/2"] == {"parent": "baked/1"}


def test_a_registry_that_is_away_is_asked_once(spool: Spool) -> None:
    registry = Noted()
    registry.away = True
    for _ in range(3):
        spool.register(3, 1, "baked", Path("a"), {})
    with pytest.raises(RegistryUnavailable):
        spool.replay(registry)
    assert len(spool.pending()) == 3


@pytest.mark.parametrize(
    "entry",
    [
        {"op": "of tomorrow"},
        {"op": "register", "phase": 3},
        {"op": "session", "id": "odd", "checkpoints": {}, "colour": "blue"},
    ],
)
def test_an_entry_of_another_schema_waits_and_holds_up_no_other(
    spool: Spool, entry: dict[str, object]
) -> None:
    spool._write({"key": "odd", **entry})
    spool.register(3, 1, "baked", Path("a"), {})
    registry = Noted()
    assert spool.replay(registry) == 1
    assert list(registry.metadata) == ["baked/1"]
    assert [e["key"] for e in spool.pending()] == ["odd"]
    assert spool.failed() == []


def test_the_states_of_one_session_do_not_overtake_one_another(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Noted()
    for name, status in (("a", "RUNNING"), ("b", "RUNNING"), ("a", "FINISHED")):
        spool.session(make_session(name, status))

    def refuse(session: Session) -> None:
        if session.status == "RUNNING" and session.id == "a":
            raise OSError(errno.EIO, "Input/output error")
        Noted.record_session(registry, session)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "record_session", refuse)
        spool.replay(registry)
    assert [s.id for s in registry.sessions] == ["b"]
    spool.replay(registry)
    assert [(s.id, s.status) for s in registry.sessions[1:]] == [
        ("a", "RUNNING"),
        ("a", "FINISHED"),
    ]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_what_the_disk_does_not_take_is_kept_and_written_later(
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    call: str,
) -> None:
    first = spool.register(3, 1, "baked", Path("a"), {})

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    with caplog.at_level(logging.WARNING), monkeypatch.context() as broken:
        if call == "open":
            broken.setattr(durable.AppendOnly, "__init__", fail)
        else:
            target = os if call == "fsync" else durable.AppendOnly
            broken.setattr(target, call, fail)
        second = spool.register(3, 1, "baked", Path("b"), {})
        third = spool.register(3, 1, "baked", Path("c"), {})
        assert [entry["key"] for entry in spool.pending()] == [first, second, third]
        assert spool.replay(Noted()) == 3  # sent all the same
        assert spool.pending() == []
    fourth = spool.register(3, 1, "baked", Path("d"), {})
    assert [entry["key"] for entry in Spool(spool.path).pending()] == [fourth]
    kept, again = [r.getMessage() for r in caplog.records]
    assert "kept in memory until they can be written" in kept
    assert "written again" in again


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_flock(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    spool.register(3, 1, "baked", Path("a"), {})
    spool.register(3, 1, "baked", Path("b"), {})
    assert spool.unwritten == 0
    assert spool.replay(Noted()) == 2
    assert [p.name for p in spool.path.parent.iterdir()] == ["spool.jsonl"]


def test_lines_are_read_once(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    genuine = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or genuine(line))
    for number in range(100):
        key = spool.register(3, 1, "baked", Path("a"), {"number": number})
        assert len(spool.pending()) == number + 1
        assert spool.outcome(key) is None
    in_file = [line for line in parsed if isinstance(line, bytes)]
    assert len(in_file) == len(set(in_file)) == 100


def test_a_spool_that_was_replaced_is_read_anew(spool: Spool) -> None:
    spool.register(3, 1, "baked", Path("a"), {})
    assert len(spool.pending()) == 1
    spool.path.unlink()
    assert spool.pending() == []
    key = spool.register(3, 1, "baked", Path("a"), {})
    assert [entry["key"] for entry in spool.pending()] == [key]


def test_a_folder_that_was_moved_with_its_spool(tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    spool = Spool(before / "spool.jsonl")
    spool.register(3, 1, "baked", before / "run" / "model", {})
    spool.register(3, 1, "baked", tmp_path / "elsewhere", {})
    spool.session(Session("a", 3, 1, str(before / "run"), "host", "RUNNING"))
    after = before.rename(tmp_path / "after")
    paths, registry = [], Noted()
    registry.register_model = lambda *arguments: paths.append(arguments[3]) or "baked/1"  # type: ignore[method-assign]
    assert Spool(after / "spool.jsonl").replay(registry) == 3
    assert paths == [str(after / "run" / "model"), str(tmp_path / "elsewhere")]
    assert registry.sessions[0].directory == str(after / "run")


def test_relocate_changes_what_waits_and_nothing_that_was_sent(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    path, registry = tmp_path / "here" / "spool.jsonl", Noted()
    spool = Spool(path)
    sent = spool.register(2, 0, "sent", old / "sent", {})
    assert spool.replay(registry) == 1
    # One beside the spool, kept relative, and one elsewhere.
    spool.register(2, 0, "first", old / "first", {})
    spool.register(2, 0, "second", path.parent / "run" / "model", {})
    where = {3: {"path": str(old / "run" / "step_3"), "manifest": "m"}}
    lock = str(old / ".run.lock")
    spool.session(Session("a", 3, 1, str(old / "run"), "host", "RUNNING", where, lock=lock))
    spool.curves("a", old / "run" / "metrics.jsonl", 10)
    order = [entry["key"] for entry in spool.pending()]
    before = path.read_bytes()
    assert spool.relocate(old, new, dry_run=True) == 3
    assert path.read_bytes() == before
    assert spool.relocate(old, new) == 3
    again = Spool(path)
    assert [entry["key"] for entry in again.pending()] == order
    first, second, session, curves = again.pending()
    assert (first["model_path"], second["model_path"]) == (str(new / "first"), "run/model")
    assert session["directory"] == str(new / "run")
    assert session["lock"] == str(new / ".run.lock")
    assert session["checkpoints"]["3"]["path"] == str(new / "run" / "step_3")
    assert curves["file"] == str(new / "run" / "metrics.jsonl")
    assert again.outcome(sent) == {"version": "sent/1"}
    assert again.relocate(path.parent, new) == 1
    assert again.pending()[1]["model_path"] == str(new / "run" / "model")
    assert again.relocate(old, new) == 0
