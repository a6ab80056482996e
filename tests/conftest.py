"""The environment of every test, set before torch or DeepSpeed is imported; who runs beside whom.

`make test` gives each core a worker. Tests of one file stay together, so that what a module builds
is built once; what several files need is built once for all workers (`tests/shared.py`). Costly
files come first, so that workers end together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
# What a slow machine has a command say of itself is no error of it.
os.environ.setdefault("DISTFORGE_SILENCE_SECONDS", "86400")
# A worker has one core: threads of more than that only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
# The dearest first, in this order; the first makes what all of integration reads.
COSTLY = ("integration/test_bad_input.py", "unit/ops/test_sanitized.py", "faults", "integration")
COSTLY += ("unit/test_build.py", "distributed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def name(item: pytest.Item) -> str:
        return item.path.relative_to(TESTS).as_posix()

    def place(item: pytest.Item) -> int:
        return next(
            (n for n, path in enumerate(COSTLY) if name(item).startswith(path)), len(COSTLY)
        )

    items.sort(key=place)
    for item in items:
        # There is one server, of one worker.
        group = "server" if "server" in getattr(item, "fixturenames", ()) else name(item)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One directory for all workers, new registries from a template, and plots of few pixels."""
    from distforge.reports import canvas
    from tests.registry_template import use_template
    from tests.shared import VARIABLE

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(root / "shared"))
        patch.setattr(canvas, "_DPI", 20)
        use_template(patch)
        yield
