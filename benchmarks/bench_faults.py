"""What of a run survives when calls to the operating system fail, and when it is killed.

    python benchmarks/bench_faults.py --json benchmarks/results/faults.json --jobs 2

Short runs of step 1 (new, and in the place of a finished one), of step 2, publishing to an embedded
registry, and sending to it later. Every call about a file of theirs fails once, with one of the two
errors that such a call may meet; calls of one kind on files of one ending in one directory take
turns, so that they meet both. Of each such kind and files one call and all later ones fail. Before
every call that changes something that another process can see, and at random moments of the whole
command, the process is killed. Left out: of the database's calls, while sending later, three in
four, since publishing makes the same ones; and kills between two writes of its pages.

Counted as broken: an exit status that is not a documented one, a traceback, a checkpoint or model
that was there and is not or does not verify, and a run that does not go on to the same weights, bit
for bit.

With ``--work`` what was counted is kept, and gone on from; ``--so-far`` publishes what is there,
"done" of "planned".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Row, arguments, keep_part, measure_parts, publish, work_directory

# The faults are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from tests.faults.promises import Tally

QUICK = 6
# Of a case's faults, so that a part takes minutes.
SHARES = 4
KEEP_EVERY = 5
UNFINISHED = "_unfinished"


def measure(name: str, quick: bool, work: Path) -> dict[str, Any]:
    """The faults of one part, of case N the share M: its failing calls, and its random kills.

    What it has counted is kept now and then, and gone on from when it is asked for again.
    """
    from tests.faults.forking_server import serving
    from tests.faults.injecting import CASES, KILLS, SEED, failing_calls, kill_at_random
    from tests.shared import VARIABLE

    number, share = (int(word) for word in name.split("_")[1:])
    case, size = CASES[number], QUICK if quick else None
    calls = f"{case.name}: calls"
    kept = read_part(work, f"{name}{UNFINISHED}")
    before = kept.get(calls, {"counts": {}, "broken": [], "done": 0})
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ[VARIABLE] = str(place / "shared")
        with serving(place) as server:
            faults = failing_calls(case, server, place, size, (share, SHARES), before["done"])
            for tally, done, planned in faults:
                kept[calls] = add(before, as_json(tally)) | {"done": done, "planned": planned}
                if done % KEEP_EVERY == 0:
                    keep_part(kept, work, f"{name}{UNFINISHED}")
            if kills := 1 if quick else KILLS.get(case, 0) // SHARES:
                tally = kill_at_random(case, server, place, kills, SEED + share)
                counts = {"done": kills, "planned": kills}
                kept[f"{case.name}: kills"] = as_json(tally) | counts
    return kept


def as_json(tally: Tally) -> dict[str, Any]:
    broken = [f"{broken.fault}: {broken.what}" for broken in tally.broken]
    return {"counts": dict(tally.counts), "broken": broken}


def add(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two tallies as one."""
    counts = dict(one["counts"])
    for kind, count in other["counts"].items():
        counts[kind] = counts.get(kind, 0) + count
    return {"counts": counts, "broken": one["broken"] + other["broken"]}


def merge(found: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parts by what they are about."""
    merged: dict[str, dict[str, Any]] = {}
    for part in found:
        for work, tally in part.items():
            whole = merged.get(work, {"counts": {}, "broken": [], "parts": 0})
            parts = {"parts": whole["parts"] + 1, "of_parts": SHARES}
            numbers = {key: whole.get(key, 0) + tally[key] for key in ("done", "planned")}
            merged[work] = add(whole, tally) | numbers | parts
    return merged


def read_part(work: Path, name: str) -> dict[str, Any]:
    """What was kept under that name; empty where nothing was."""
    file = work / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, help="keep parts here, and do not do them again")
    parser.add_argument("--jobs", type=int, default=1, help="parts at once")
    parser.add_argument("--so-far", action="store_true", help="what is in --work, nothing more")
    parser.add_argument("--part", help="this part alone; used by the benchmark itself")
    options = parser.parse_args()
    if options.part:
        keep_part(measure(options.part, options.quick, options.work), options.work, options.part)
        return
    from tests.faults.injecting import CASES

    # The first share of every case first: whoever stops early has seen some of all.
    names = [f"case_{number}_{share}" for share in range(SHARES) for number in range(len(CASES))]
    if options.so_far:
        work = options.work
        found = [read_part(work, n) or read_part(work, f"{n}{UNFINISHED}") for n in names]
    else:
        quick = ["--quick"] if options.quick else []
        parts = {name: [f"--part={name}", *quick] for name in names}
        with work_directory(options.work) as work:
            found = list(measure_parts(parts, work, options.jobs).values())
    merged = merge(found)
    rows = [
        Row(
            work=work,
            ours=len(whole["broken"]),
            peer="faults injected",
            peer_value=whole["done"],
            unit="broken promises",
            ratio=float(not whole["broken"]),
        )
        for work, whole in merged.items()
    ]
    publish(rows, options.json, parts=merged)


if __name__ == "__main__":
    main()
