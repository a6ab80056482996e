"""The examples of MuonGrokfast in other people's training loops run, and their losses fall."""

import contextlib
import importlib.util
import io
import os
import re
import runpy
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed.harness import run_ranks
from tests.free_port import free_port

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def printed(name: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return out.getvalue()


def require_learned(text: str) -> None:
    found = re.search(r"^loss (\S+) -> (\S+)$", text, re.MULTILINE)
    assert found, text
    assert float(found[2]) < 0.6 * float(found[1])


def run_example(_, name: str) -> str:
    """In a process of its own: these libraries keep state of their own in it."""
    for name_of_rank in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name_of_rank, None)
    return printed(name)


def run_example_among_ranks(_, name: str, port: int) -> str:
    dist.destroy_process_group()  # the example makes its own, as torchrun would have it
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return printed(name)


@pytest.mark.parametrize("name", ["trainer.py", "accelerate_loop.py"])
def test_the_loop_of_another_library_trains(name):
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is NOT installed: neither it nor transformers' Trainer is tested")
    require_learned(run_ranks(1, run_example, name)[0])


def test_a_plain_fully_shard_loop_trains():
    for text in run_ranks(2, run_example_among_ranks, "fsdp2.py", free_port()):
        require_learned(text)
