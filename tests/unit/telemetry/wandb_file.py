"""Reads an offline ``.wandb`` file back without W&B's own reader.

Seven bytes of header, then LevelDB's log format: 32 KiB blocks of fragments, each with a CRC (4
bytes), a length (2, little-endian) and a type (full, first, middle, last); a whole record is one
``wandb_internal.Record``.
"""

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK, _FRAGMENT_HEADER = 7, 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path, deadline_seconds: float = 30.0) -> list[Record]:
    """All records of a finished run's file.

    W&B's service may write on for a moment after ``finish`` has returned: the file is complete once
    it holds the exit record, for which this waits until the deadline.
    """
    give_up = time.monotonic() + deadline_seconds
    while True:
        records = _whole_records(path.read_bytes())
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < give_up, f"{path} has no exit record"
        time.sleep(0.01)


def _whole_records(content: bytes) -> list[Record]:
    if len(content) < _HEADER:
        return []
    assert content[:4] == b":W&B"
    records, partial, position = [], b"", _HEADER
    while position + _FRAGMENT_HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _FRAGMENT_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += _FRAGMENT_HEADER
        fragment = content[position : position + length]
        position += length
        if len(fragment) < length:
            break
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        partial = fragment if kind in (_FULL, _FIRST) else partial + fragment
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(partial)
            records.append(record)
    return records


def history(records: list[Record]) -> list[dict[str, Any]]:
    """What was logged, one mapping a step, with W&B's own keys (``_step``, …) among it."""
    return [
        {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def only_run_file(directory: Path) -> Path:
    """The one ``.wandb`` file below ``directory/wandb``."""
    (found,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    return found
