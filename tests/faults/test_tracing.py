"""What is injected, planned from the calls of a run."""

from __future__ import annotations

from pathlib import Path

from tests.faults.forking_server import Mode
from tests.faults.tracing import Call, Planned, plan

FOLDER = Path("/runs")
CALLS = [
    ("mkdir", "run"),
    ("unlink", "run/a.json.tmp"),
    ("create", "run/a.json.tmp"),
    ("write", "run/a.json.tmp"),
    ("fsync", "run/a.json.tmp"),
    ("rename", "run/a.json.tmp"),
    ("unlink", "run/a.json.tmp"),
    ("create", "run/b.json.tmp"),
    ("read", "run/a.json"),
    ("mkdir", "run"),
    *[("write", "registry.db-journal")] * 3,
    ("write", "registry.db"),
]


def planned(mode: Mode, database_share: int = 1) -> list[Planned]:
    calls = [
        Call(number, kind, 0, FOLDER / path, Path(f"{FOLDER}/{path}".removesuffix(".tmp")))
        for number, (kind, path) in enumerate(CALLS, start=1)
    ]
    return [fault for fault in plan(calls, FOLDER, database_share) if fault.mode is mode]


def test_every_call_fails_and_every_kind_of_call_on_one_sort_of_file_with_both_errors() -> None:
    faults = planned(Mode.ONCE)
    assert {fault.call for fault in faults} == set(range(1, len(CALLS) + 1))
    created = [(fault.call, fault.choice) for fault in faults if fault.kind == "create"]
    assert created == [(3, 0), (8, 1)]  # files of one ending in one directory take turns
    assert [(f.call, f.choice) for f in faults if f.kind == "rename"] == [(6, 0), (6, 1)]


def test_of_each_kind_and_sort_of_file_one_fails_for_good() -> None:
    assert [fault.call for fault in planned(Mode.LASTING)] == [1, 2, 3, 4, 5, 6, 9, 11, 14]


def test_it_is_killed_only_where_something_has_changed() -> None:
    # Not before a flush, nor what is there or gone already, nor between a database's pages.
    assert [fault.call for fault in planned(Mode.KILL)] == [1, 2, 3, 4, 6, 8, 11, 14]


def test_of_a_database_only_a_share_fails_where_that_is_asked() -> None:
    calls = {fault.call for fault in planned(Mode.ONCE, database_share=4)}
    assert calls == set(range(1, len(CALLS) + 1)) - {13}
