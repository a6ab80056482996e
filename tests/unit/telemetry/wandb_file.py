"""Reads an offline ``.wandb`` file back without W&B's own reader.

Seven bytes of header, then LevelDB's log format: 32 KiB blocks of fragments, each with a CRC (4
bytes), a length (2, little-endian) and a type (full, first, middle, last); a whole record is one
``wandb_internal.Record``.
"""

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK, _FRAGMENT_HEADER = 7, 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> list[Record]:
    """All records of the file."""
    content = path.read_bytes()
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
        assert len(fragment) == length, "a fragment is cut off"
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
