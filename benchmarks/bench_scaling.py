"""What ranks send each other, counted, against the communication model.

    python benchmarks/bench_scaling.py --json benchmarks/results/scaling.json

A model of 5.5M parameters with MuonGrokfast at ZeRO 0 to 3, one and two micro-batches a rank, on
two and on four ranks of this machine, over TCP on its loopback interface, whose counters are read
around each step (nothing else should use it meanwhile). tests/distributed/test_two_nodes.py counts
the same between two network namespaces. `scaling_model.py` projects it to what is not at hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Row, arguments, publish

from distforge.training.traffic import bytes_sent

# The ranks are those of the tests.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_SECONDS = 600.0


def measure(ranks: int) -> dict[str, dict[str, float]]:
    """By case: bytes that all ranks sent in a step, and its seconds."""
    from tests.free_port import free_port

    with tempfile.TemporaryDirectory() as folder:
        world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        world |= {"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "tests.distributed.traffic_rank"]
        started = [
            subprocess.Popen(
                [*command, f"{folder}/{rank}.json"],
                cwd=ROOT,
                env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]
        if any(process.wait(_SECONDS) for process in started):
            raise RuntimeError("a rank failed; its error is above")
        return json.loads(Path(folder, "0.json").read_text(encoding="utf-8"))


def main() -> None:
    from tests.distributed.traffic_rank import CASES, muon_shapes

    parser = arguments(__doc__ or "")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    count, shapes = muon_shapes()
    rows, raw = [], {}
    for ranks in options.ranks[:1] if options.quick else options.ranks:
        found = raw[f"{ranks} ranks"] = measure(ranks)
        for stage, portions in CASES:
            modelled = bytes_sent(
                count, shapes, zero_stage=stage, world_size=ranks, portions=portions
            )["total"]
            sent = found[f"{stage} {portions}"]["sent"] / ranks
            work = f"{ranks} ranks, ZeRO {stage}, {portions} micro-batch(es): sent by a rank a step"
            rows.append(Row(work, sent / 1e6, "the model", modelled / 1e6, "MB", modelled / sent))
    publish(rows, options.json, parameters=count, measured=raw)


if __name__ == "__main__":
    main()
