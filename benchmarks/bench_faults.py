"""What of a run survives when calls to the operating system fail, and when it is killed.

    python benchmarks/bench_faults.py --json benchmarks/results/faults.json --jobs 2

Short runs of step 1 (new, and in the place of a finished one), of step 2, and publishing to an
embedded registry. Every call about a file of theirs fails once with each error that it may meet;
of each kind and file one fails from then on; before every call that changes something, and at
random moments of the whole command, the process is killed. What is counted as broken: an exit
status that is not a documented one, a traceback, a checkpoint or model that was there and is not or
does not verify, and a run that does not go on to the same weights, bit for bit.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Row, arguments, keep_part, measure_parts, publish, work_directory

# The faults are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

QUICK = 6
# Of a case's calls, so that a part takes minutes.
SHARES = 4


def measure(name: str, quick: bool) -> dict[str, Any]:
    """The faults of one part: the kills of case N, or a share of its calls."""
    from tests.faults.forking_server import serving
    from tests.faults.injecting import CASES, KILLS, fail_calls, kill_at_random
    from tests.shared import VARIABLE

    how, number, share = name.split("_")
    case = CASES[int(number)]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[VARIABLE] = str(Path(scratch, "shared"))
        with serving(Path(scratch)) as server:
            if how == "calls":
                size = QUICK if quick else None
                tally = fail_calls(case, server, Path(scratch), size, (int(share), SHARES))
            else:
                kills = QUICK if quick else KILLS[case]
                tally = kill_at_random(case, server, Path(scratch), kills)
    broken = [f"{broken.fault}: {broken.what}" for broken in tally.broken]
    return {"work": f"{case.name}: {how}", "counts": tally.counts, "broken": broken}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, help="keep parts here, and do not do them again")
    parser.add_argument("--jobs", type=int, default=1, help="parts at once")
    parser.add_argument("--part", help="this part alone; used by the benchmark itself")
    options = parser.parse_args()
    if options.part:
        keep_part(measure(options.part, options.quick), options.work, options.part)
        return
    from tests.faults.injecting import CASES, KILLS

    names = [f"calls_{number}_{share}" for number in range(len(CASES)) for share in range(SHARES)]
    names += [f"kills_{number}_0" for number, case in enumerate(CASES) if case in KILLS]
    quick = ["--quick"] if options.quick else []
    parts = {name: [f"--part={name}", *quick] for name in names}
    with work_directory(options.work) as work:
        found = measure_parts(parts, work, options.jobs)
    merged: dict[str, dict[str, Any]] = {}
    for part in found.values():
        whole = merged.setdefault(part["work"], {"counts": {}, "broken": []})
        whole["broken"] += part["broken"]
        for kind, count in part["counts"].items():
            whole["counts"][kind] = whole["counts"].get(kind, 0) + count
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
