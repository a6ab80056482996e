"""The environment of every test, set before torch or DeepSpeed is imported; who runs beside whom.

`make test` gives each core a worker. Tests of one file stay together, so that what a module builds
is built once; so do those that share what takes long to make.
"""

import os
from pathlib import Path

import pytest

# DeepSpeed looks for an accelerator on import; on a machine without one it must be told.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed's own Muon, imported with its ZeRO, otherwise compiles for up to a minute.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
# A test that reaches for the network fails at once instead of waiting for a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# A worker has one core: threads of more than that only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
# What these make once for the session, they make once for one worker.
SHARED_FIXTURES = ("work", "server")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        shared = [name for name in SHARED_FIXTURES if name in getattr(item, "fixturenames", ())]
        item.add_marker(
            pytest.mark.xdist_group(
                shared[0] if shared else item.path.relative_to(TESTS).as_posix()
            )
        )
