"""Two nodes over real TCP: what they send, the losses of one node, a node that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distforge.telemetry.metrics import TRAIN_LOSS
from distforge.training.joining import JOIN_VARIABLE
from distforge.training.traffic import bytes_sent
from tests.distributed.harness import run_ranks
from tests.distributed.namespaces import ROOT, Node, allowed, two_nodes
from tests.distributed.traffic_rank import CASES, muon_shapes
from tests.faults.conftest import make_champion
from tests.faults.test_stop_signal import bake, curve, digest, wait_for_file
from tests.free_port import free_port
from tests.shared import build_once

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
DEADLINE = 400
TOLERANCE = 0.05


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    if not allowed():
        pytest.skip("this process may not make network namespaces (ip netns needs root)")
    with two_nodes() as pair:
        yield pair


def ranks(nodes: tuple[Node, Node], *command: str, **environment: str) -> list[subprocess.Popen]:
    """The command on each node, as ranks 0 and 1."""
    port, started = str(free_port()), []
    for rank, node in enumerate(nodes):
        world = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        world |= {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": port, **environment}
        words = [word.format(rank=rank) for word in command]
        started.append(node.start([sys.executable, *words], environment=world))
    return started


def test_bytes_are_those_of_the_model(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    out = str(tmp_path / "{rank}.json")
    for process in ranks(nodes, "-m", "tests.distributed.traffic_rank", out):
        assert process.wait(DEADLINE) == 0
    count, shapes = muon_shapes()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    losses = set()
    for stage, portions in CASES:
        ours = [each[f"{stage} {portions}"] for each in found]
        modelled = bytes_sent(count, shapes, zero_stage=stage, world_size=2, portions=portions)
        for each in ours:
            assert each["sent"] == pytest.approx(modelled["total"], rel=TOLERANCE)
        losses.add((portions, *(round(each["loss"], 5) for each in ours)))
    assert len(losses) == 2  # stages agree


def start(
    nodes: tuple[Node, Node], config: Path, output: Path, *words: str
) -> list[subprocess.Popen]:
    """Step 1 by DeepSpeed's launcher on each node, without ssh between them."""
    hostfile = output.with_suffix(".hosts")
    hostfile.write_text("node-1 slots=1\nnode-2 slots=1\n")
    launcher = str(Path(sys.executable).parent / "deepspeed")
    port, started = str(free_port()), []
    for rank, node in enumerate(nodes):
        command = [launcher, "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(rank)]
        command += ["--master_addr", nodes[0].address, "--master_port", port]
        command += [str(ROOT / "launch" / "step1.py"), "--config", str(config)]
        with open(output.with_suffix(f".{rank}.log"), "a", encoding="utf-8") as said:
            started.append(
                node.start([*command, "--output", str(output), *words], stdout=said, stderr=said)
            )
    return started


def test_two_nodes_train_what_one_does_and_survive_the_loss_of_one(
    nodes: tuple[Node, Node],
    tmp_path: Path,
) -> None:
    config = build_once("faults", make_champion) / "tiny.toml"
    straight, output = tmp_path / "straight", tmp_path / "nodes"
    assert run_ranks(2, bake, ["--config", str(config), "--output", str(straight)], 0, 0, 0) == [
        3,
        3,
    ]
    run = output / "tiny"
    first, second = start(nodes, config, output)
    wait_for_file(run / "checkpoints" / "step_3", first)
    nodes[1].kill()
    second.wait(DEADLINE)
    assert first.wait(DEADLINE) not in (0, 3)  # it ends by itself, and not as if all were well
    assert not (run / "summary.json").exists()
    for process in start(nodes, config, output, "--resume", "auto"):
        process.wait(DEADLINE)
    said = output.with_suffix(".0.log").read_text()
    assert (run / "summary.json").exists(), said[-3000:]
    assert curve(run, TRAIN_LOSS) == curve(straight / "tiny", TRAIN_LOSS)
    assert digest(run) == digest(straight / "tiny")


def test_a_node_that_never_comes_ends_the_wait_in_a_sentence(nodes: tuple[Node, Node]) -> None:
    first = ("-m", "distforge", "bake", "--config", "quick", "--output", "/nonexistent")
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
    world |= {"MASTER_ADDR": nodes[0].address, JOIN_VARIABLE: "5"}
    process = nodes[0].start([sys.executable, *first], environment=world, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert f"joined at {nodes[0].address}:" in said
    assert "Traceback" not in said


def test_nodes_of_unlike_versions_are_refused(nodes: tuple[Node, Node]) -> None:
    code = (
        "import os, sys, distforge; from distforge.cli import main; "
        "distforge.__version__ += 'x' * int(os.environ['RANK']); "
        "sys.exit(main(['bake', '--config', 'quick', '--output', '/nonexistent']))"
    )
    started = ranks(nodes, "-c", code)
    assert [process.wait(DEADLINE) for process in started] == [2, 2]
