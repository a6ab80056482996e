"""docs/machines.md: a launcher on each of two nodes, without ssh between them.

Both are on this machine; `tests/distributed/test_two_nodes.py` gives each a network of its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED, OK
from tests.documented import command
from tests.documented_folder import environment, run
from tests.free_port import free_port
from tests.integration.launching import curve

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

PAGE = "docs/machines.md"
DEADLINE = 600


def test_train_on_two_nodes(folder: Path) -> None:
    made = run(folder, command(PAGE, "distforge champion make"))
    assert made.returncode == OK, made.stdout + made.stderr
    line = command(PAGE, "deepspeed --no_ssh").replace("NODE-1", "127.0.0.1")
    line = line.replace("29500", str(free_port()))
    nodes = []
    for rank in (0, 1):
        with open(folder / f"{rank}.log", "w", encoding="utf-8") as said:
            nodes.append(
                subprocess.Popen(
                    ["bash", "-c", line.replace("--node_rank 0", f"--node_rank {rank}")],
                    cwd=folder,
                    env=environment(folder),
                    stdout=said,
                    stderr=said,
                )
            )
    ended = [node.wait(DEADLINE) for node in nodes]
    said = (folder / "0.log").read_text(encoding="utf-8")
    assert (folder / "runs" / "multi-node" / "summary.json").is_file(), (ended, said)
    assert set(ended) <= {OK, 1, GOAL_MISSED}  # the launcher turns 3 into 1

    here = "deepspeed --num_accelerators 2 --master_port {} launch/step1.py --config {} --name one"
    one = run(folder, here.format(free_port(), "configs/multi_node.toml"))
    losses = curve(folder / "runs" / "multi-node")
    assert len(losses) == 8, one.stdout + one.stderr
    assert losses == curve(folder / "runs" / "one")
