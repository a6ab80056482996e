"""The event log: whole lines only, in one chain, whoever writes."""

import json
import threading
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.registry.events import EventLog


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "sub" / "events.jsonl")
    for number in range(5):
        log.append("promote", version=f"champion/{number}", alias="champion")
    return log


def test_read_back_in_order(log: EventLog) -> None:
    events = log.read()
    assert [e["version"] for e in events] == [f"champion/{number}" for number in range(5)]
    assert {"time", "event", "user", "host", "pid", "previous"} <= set(events[0])
    assert EventLog(log.path.with_name("none")).read() == []


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("what", ["change", "remove", "insert", "swap", "garble"])
def test_what_is_changed_later_is_found(log: EventLog, line: int, what: str) -> None:
    lines = log.path.read_text().splitlines()
    if what == "change":
        lines[line] = json.dumps({**json.loads(lines[line]), "alias": "rl-best"})
    elif what == "remove":
        del lines[line]
    elif what == "insert":
        lines.insert(line + 1, lines[line])
    elif what == "swap":
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    else:
        lines[line] = lines[line][:-3]
    log.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="does not follow from the line before"):
        log.read()


def test_half_a_line_is_dropped_by_the_next(log: EventLog) -> None:
    with open(log.path, "a", encoding="utf-8") as stream:
        stream.write('{"event": "reg')
    assert len(log.read()) == 5
    log.append("register", version="champion/9")
    assert [e["version"] for e in log.read()][-1] == "champion/9"
    assert len(log.read()) == 6


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def write(writer: int) -> None:
        for number in range(20):
            EventLog(path).append("register", version=f"{writer}-{number}")

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = {f"{w}-{n}" for w in range(4) for n in range(20)}
    assert {e["version"] for e in EventLog(path).read()} == expected
