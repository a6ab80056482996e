"""Which runs belong together: step 1, the step 2 that started from it, and the report of both."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge.errors import InputError
from distforge.models.weight_files import weights_sha256
from distforge.reports.page_parts import Link
from distforge.reports.pipeline_record import PipelineRecord
from distforge.reports.summary import SUMMARY_NAME

INDEX_NAME = "index.html"
_REPORT_NAME = "report.html"


@dataclass(frozen=True)
class Related:
    """The runs of one pipeline, which lie beside each other.

    ``step2`` is None where there is none. ``record`` is what `distforge run` noted; None where the
    steps were called one by one.
    """

    step1: Path
    step2: Path | None
    record: PipelineRecord | None


def related_runs(run_dir: Path) -> Related | None:
    """The runs that ``run_dir``, of either step, belongs to; None where its step 1 is not there.

    Raises:
        InputError: a file of them is malformed.
    """
    run_dir = run_dir.resolve()
    if (record := PipelineRecord.read(run_dir)) is not None:
        step2 = run_dir.parent / record.step2 if record.step2 else None
        return Related(run_dir, step2, record)
    summary = peek(run_dir)
    if summary.get("step") == 2:
        return _from_step2(run_dir, summary)
    if summary.get("step") != 1 or "reports" in summary:
        return None
    return Related(run_dir, _step2_of(run_dir), None)


def links_of(run_dir: Path, step: int) -> list[Link]:
    """From the report of a step to the other's and to that of the whole, where they are."""
    found = related_runs(run_dir)
    if found is None:
        return []
    links = []
    if (found.step1 / INDEX_NAME).is_file() or found.record is not None:
        links.append(Link("← the whole of phase 3", relative(found.step1 / INDEX_NAME, run_dir)))
    other = found.step2 if step == 1 else found.step1
    if other is not None and (other / _REPORT_NAME).is_file():
        links.append(
            Link(f"step {3 - step}: {other.name}", relative(other / _REPORT_NAME, run_dir))
        )
    return links


def relative(target: Path, run_dir: Path) -> str:
    """The address of a file on a page that lies in ``run_dir``."""
    return Path(os.path.relpath(target.resolve(), run_dir.resolve())).as_posix()


def peek(run_dir: Path) -> dict[str, Any]:
    """A run's summary as it is; empty where there is none.

    Raises:
        InputError: the file is not a JSON object.
    """
    path = run_dir / SUMMARY_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run the step again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object; run the step again")
    return content


def weights_of(run_dir: Path) -> str:
    """The sha256 of the weights of a run's model; empty where there is none that can be read."""
    try:
        return weights_sha256(str(run_dir / "model"))
    except InputError:
        return ""


def _from_step2(run_dir: Path, summary: dict[str, Any]) -> Related | None:
    beside = _beside(run_dir)
    for step1 in beside:
        with suppress(InputError):
            record = PipelineRecord.read(step1)
            if record is not None and record.step2 == run_dir.name:
                return Related(step1, run_dir, record)
    for step1 in beside:
        with suppress(InputError):
            if peek(step1).get("step") == 1 and _is_from(summary, step1):
                return Related(step1, run_dir, None)
    return None


def _step2_of(run_dir: Path) -> Path | None:
    """The newest step 2 beside a step 1 that started from its model."""
    found = []
    for path in _beside(run_dir):
        with suppress(InputError):
            summary = peek(path)
            if summary.get("step") == 2 and _is_from(summary, run_dir):
                found.append(path)
    return max(found, key=lambda path: (path / SUMMARY_NAME).stat().st_mtime, default=None)


def _is_from(summary: dict[str, Any], step1: Path) -> bool:
    return bool((weights := weights_of(step1)) and summary.get("baked_sha256") == weights)


def _beside(run_dir: Path) -> list[Path]:
    # What is wrong with a run beside it is nothing to this one.
    shown = (p for p in run_dir.parent.iterdir() if not p.name.startswith("."))
    return sorted(p for p in shown if p.is_dir() and p != run_dir)
