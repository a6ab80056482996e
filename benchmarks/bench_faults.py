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

With ``--work`` parts are kept, and ``--so-far`` publishes those that are there and says which.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import Row, arguments, keep_part, measure_parts, publish, work_directory

# The faults are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

QUICK = 6
# Of a case's faults, so that a part takes minutes.
SHARES = 4


def measure(name: str, quick: bool) -> dict[str, Any]:
    """The faults of one part, of case N the share M: its failing calls, and its random kills."""
    from tests.faults.forking_server import serving
    from tests.faults.injecting import CASES, KILLS, SEED, fail_calls, kill_at_random
    from tests.shared import VARIABLE

    number, share = (int(word) for word in name.split("_")[1:])
    case = CASES[number]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ[VARIABLE] = str(place / "shared")
        with serving(place) as server:
            size = QUICK if quick else None
            tallies = {"calls": fail_calls(case, server, place, size, (share, SHARES))}
            if kills := 1 if quick else KILLS.get(case, 0) // SHARES:
                tallies["kills"] = kill_at_random(case, server, place, kills, SEED + share)
    return {
        f"{case.name}: {how}": {
            "counts": tally.counts,
            "broken": [f"{broken.fault}: {broken.what}" for broken in tally.broken],
        }
        for how, tally in tallies.items()
    }


def merge(found: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parts of one name put together."""
    merged: dict[str, dict[str, Any]] = {}
    for part in found:
        for work, tally in part.items():
            whole = merged.setdefault(work, {"parts": 0, "of": SHARES, "counts": {}, "broken": []})
            whole["parts"] += 1
            whole["broken"] += tally["broken"]
            for kind, count in tally["counts"].items():
                whole["counts"][kind] = whole["counts"].get(kind, 0) + count
    return merged


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, help="keep parts here, and do not do them again")
    parser.add_argument("--jobs", type=int, default=1, help="parts at once")
    parser.add_argument("--so-far", action="store_true", help="what is in --work, nothing more")
    parser.add_argument("--part", help="this part alone; used by the benchmark itself")
    options = parser.parse_args()
    if options.part:
        keep_part(measure(options.part, options.quick), options.work, options.part)
        return
    from tests.faults.injecting import CASES

    # The first share of every case first: whoever stops early has seen some of all.
    names = [f"case_{number}_{share}" for share in range(SHARES) for number in range(len(CASES))]
    if options.so_far:
        names = [name for name in names if (options.work / f"{name}.json").exists()]
    quick = ["--quick"] if options.quick else []
    parts = {name: [f"--part={name}", *quick] for name in names}
    with work_directory(options.work) as work:
        found = measure_parts(parts, work, options.jobs)
    merged = merge(found.values())
    rows = [
        Row(
            work=work,
            ours=len(whole["broken"]),
            peer="faults injected",
            peer_value=sum(whole["counts"].values()),
            unit="broken promises",
            ratio=float(not whole["broken"]),
        )
        for work, whole in merged.items()
    ]
    publish(rows, options.json, parts=merged)


if __name__ == "__main__":
    main()
