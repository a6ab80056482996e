"""Which files of a directory are which split: exact names, and one file for each split."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from distforge.data.examples import Part
from distforge.data.outside import HELDOUT_NAMES
from distforge.data.rows import open_rows
from distforge.errors import InputError, first_line

SUFFIXES = (".jsonl", ".parquet", ".csv")
_NAMES = ("train", *HELDOUT_NAMES)
# Hugging Face's hub numbers the parts of a split.
_FILE = re.compile(rf"({'|'.join(_NAMES)})(-\d{{5}}-of-\d{{5}})?")
# Where a run keeps the data that it made.
_OF_A_RUN = "data"
_SAVED_SPLITS, _SAVED_STATE = "dataset_dict.json", "state.json"


def parts_of(path: Path, split: str | None) -> tuple[list[Part], str]:
    """The parts of a file or a directory, and a note on what is read as what.

    Args:
        split: of the rows of one file, or of a directory with only training rows, that do not say;
            None splits them by content.

    Raises:
        InputError: nothing there that is read, or two files of one split.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(
                f"{path} does not exist; make it with `distforge data make` or name a file"
            )
        if path.suffix not in SUFFIXES:
            raise InputError(
                f"{path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}, or a "
                "directory"
            )
        return [Part(open_rows(path), split)], f"read {path.name}"
    if (path / _SAVED_STATE).is_file():
        parts = [Part(open_rows(file), split) for file in _saved_files(path)]
        return parts, f"read the saved dataset {path.name}"
    found = saved_splits(path) or _named_files(path)
    if not found:
        inside = path / _OF_A_RUN
        if inside.is_dir() and _named_files(inside):
            raise InputError(f"{path} holds no split, but {inside} does; give that")
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{path} holds no split, but {there}; expected train.jsonl and heldout.jsonl "
            f"(or .parquet, .csv, or {' or '.join(HELDOUT_NAMES[1:])}), so name a file or rename it"
        )
    return _parts(found, split)


def _parts(found: dict[str, list[Path]], split: str | None) -> tuple[list[Part], str]:
    """The training split, and of those held out the first that is there: the others stay unseen."""
    held = next((name for name in HELDOUT_NAMES if name in found), None)
    notes = []
    parts = [Part(open_rows(file), "train" if held else split) for file in found.get("train", ())]
    if parts:
        notes.append("read train")
    if held:
        parts += [Part(open_rows(file), "heldout") for file in found[held]]
        others = [name for name in HELDOUT_NAMES if name in found and name != held]
        unread = f", before {' and '.join(others)}, which is not read" if others else ""
        notes.append(f"{held} is held out{unread}")
    return parts, "; ".join(notes)


def _named_files(directory: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    whole: set[str] = set()
    for file in sorted(directory.iterdir()):
        match = _FILE.fullmatch(file.stem)
        if match and file.suffix in SUFFIXES and file.is_file():
            found.setdefault(match[1], []).append(file)
            whole |= set() if match[2] else {match[1]}
    for name in whole:
        if len(found[name]) > 1:
            raise InputError(
                f"{directory} has several files of the split {name}: "
                f"{', '.join(file.name for file in found[name])}; keep one"
            )
    return found


def saved_splits(directory: Path) -> dict[str, list[Path]]:
    """By split, the files of a dictionary of datasets that ``datasets.save_to_disk`` wrote; empty
    where it wrote none.

    Raises:
        InputError: what it wrote is broken.
    """
    if not (directory / _SAVED_SPLITS).is_file():
        return {}
    names = _read_json(directory / _SAVED_SPLITS).get("splits", [])
    return {name: _saved_files(directory / name) for name in names if name in _NAMES}


def _saved_files(directory: Path) -> list[Path]:
    """The files of a dataset that `datasets` saved, in its order."""
    state = _read_json(directory / _SAVED_STATE)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{directory} keeps its rows' order in a separate file; save it again after "
            "flatten_indices()"
        )
    return [directory / entry["filename"] for entry in state.get("_data_files", [])]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); save the dataset again"
        ) from error
    return content if isinstance(content, dict) else {}
