"""Two nodes over real TCP: what they send, the losses of one node, a node that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distforge.telemetry.metrics import TRAIN_LOSS
from distforge.training.checkpoint import find_latest
from distforge.training.joining import JOIN_VARIABLE
from distforge.training.traffic import bytes_sent
from tests.distributed.harness import run_ranks
from tests.distributed.namespaces import ROOT, Node, allowed, two_nodes
from tests.distributed.traffic_rank import CASES, muon_shapes
from tests.faults.short_runs import NAME, made
from tests.faults.test_stop_signal import bake, curve, digest, wait_for_file
from tests.free_port import free_port

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
DEADLINE = 400
TOLERANCE = 0.05


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    if not allowed():
        pytest.skip("this process may not make network namespaces (ip netns needs root)")
    with two_nodes() as pair:
        yield pair


def ranks(
    nodes: tuple[Node, Node], *command: str, said: Path | None = None, **environment: str
) -> list[subprocess.Popen]:
    """The command on each node, as ranks 0 and 1; what they print goes to files like ``said``."""
    port, started = str(free_port()), []
    for rank, node in enumerate(nodes):
        world = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        world |= {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": port, **environment}
        words = [sys.executable, *(word.format(rank=rank) for word in command)]
        with open(f"{said}.{rank}" if said else os.devnull, "a", encoding="utf-8") as file:
            started.append(node.start(words, environment=world, stdout=file, stderr=file))
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


def launched(nodes: tuple[Node, Node], said: Path, *command: str) -> list[subprocess.Popen]:
    """The script on each node by DeepSpeed's launcher, without ssh between them."""
    hostfile = said.with_suffix(".hosts")
    hostfile.write_text("node-1 slots=1\nnode-2 slots=1\n")
    launcher = str(Path(sys.executable).parent / "deepspeed")
    port, started = str(free_port()), []
    for rank, node in enumerate(nodes):
        words = [launcher, "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(rank)]
        words += ["--master_addr", nodes[0].address, "--master_port", port]
        with open(f"{said}.{rank}", "a", encoding="utf-8") as file:
            started.append(node.start([*words, *command], stdout=file, stderr=file))
    return started


def test_two_nodes_train_what_one_does_and_survive_the_loss_of_one(
    nodes: tuple[Node, Node],
    tmp_path: Path,
) -> None:
    """The second time by DeepSpeed's launcher, whose start is dear."""
    straight, output = tmp_path / "straight", tmp_path / "nodes"
    words = ["--config", str(made() / "step1.toml"), "--training.max_steps", "8", "--output"]
    assert run_ranks(2, bake, [*words, str(straight)], 0, 0, 0) == [3, 3]
    run, said, script = output / NAME, tmp_path / "said", str(ROOT / "launch" / "step1.py")
    first, second = ranks(nodes, script, *words, str(output), said=said)
    wait_for_file(run / "checkpoints" / "step_2", first)
    nodes[1].kill()
    second.wait(DEADLINE)
    assert first.wait(DEADLINE) not in (0, 3)  # it ends by itself, and not as if all were well
    assert not (run / "summary.json").exists()
    saved = find_latest(run / "checkpoints")
    assert saved is not None
    lost = curve(run, TRAIN_LOSS)[-1][0] - int(saved.name.removeprefix("step_"))
    assert lost <= 2  # steps between two checkpoints
    for process in launched(nodes, said, script, *words, str(output), "--resume", "auto"):
        process.wait(DEADLINE)
    assert (run / "summary.json").exists(), Path(f"{said}.0").read_text(encoding="utf-8")[-3000:]
    assert curve(run, TRAIN_LOSS) == curve(straight / NAME, TRAIN_LOSS)
    assert digest(run) == digest(straight / NAME)


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
