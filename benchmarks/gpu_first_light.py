"""Everything that has to be known of a GPU that the kernels meet for the first time, in one call.

    make gpu-first-light

Builds for this GPU, holds every kernel against the reference, runs the GPU's tests, the benchmarks
of the kernels and of a training step, and short runs of step 1 and step 2. Each stage has a
deadline, and one that fails does not keep the others from running; what needs a package that is
missing is left out, and said to be. What was found lies in --out: a summary, and what each stage
wrote and said.

Without a GPU it needs ``--rehearse``, and does everything but the launches.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from harness import machine, versions

from distforge import durable
from distforge.ops import self_check

ROOT = Path(__file__).resolve().parents[1]

CONFIGURATION = "benchmarks/first_light.toml"

# For all of it; a rehearsal has more, a CPU being no GPU.
BUDGET_SECONDS = 8 * 60.0
REHEARSAL = 5.0
# As many lines of a stage that fails are shown; all that it said is kept.
TAIL = 15

# Of a run whose few steps reach no goal.
TRAINED = (0, 3)
TRAINING = ("deepspeed", "pydantic", "tyro", "tomli_w", "transformers", "xxhash")


@dataclass(frozen=True)
class Stage:
    """A command, the seconds that it may take, the modules without which it is left out, and the
    exit statuses of one that went well."""

    name: str
    command: Sequence[str]
    seconds: float
    needs: tuple[str, ...] = ()
    well: tuple[int, ...] = (0,)


def stages(out: Path, device: str) -> list[Stage]:
    """In the order of what most depends on."""
    dtypes = ["float32", "bfloat16", "float16"] if device == "cuda" else ["float32"]
    kernels = [f"{operator} {dtype}" for operator in self_check.GPU_OPERATORS for dtype in dtypes]
    quick = [] if device == "cuda" else ["--quick"]
    # 5: no test ran, which without a GPU is all of them.
    tested = (0,) if device == "cuda" else (0, 5)

    def benchmark(name: str) -> list[str]:
        return [f"benchmarks/bench_{name}.py", "--json", str(out / f"{name}.json"), *quick]

    def trained(command: str, run: str, baked: Sequence[str] = ()) -> list[str]:
        places = ["--output", str(out / "runs"), "--existing", "replace", *baked]
        return ["-m", "distforge", command, "--config", CONFIGURATION, "--name", run, *places]

    champion = ["--champion.path", str(out / "champion")]
    return [
        Stage("build", ["setup.py", "build_ext", "--inplace"], 240),
        Stage("check", ["-m", "distforge.ops", device, *kernels], 120),
        Stage("tests", ["-m", "pytest", "-q", "-m", "gpu", "tests/gpu"], 180, ("pytest",), tested),
        Stage("kernels", benchmark("kernels"), 180),
        Stage("model_step", benchmark("model_step"), 120, ("transformers",)),
        Stage("step1", trained("bake", "step1", champion), 150, TRAINING, TRAINED),
        Stage(
            "step2",
            trained("think", "step2", ["--baked", str(out / "runs" / "step1")]),
            150,
            TRAINING,
            TRAINED,
        ),
    ]


def environment(device: str) -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if device == "cuda":
        capability = "".join(map(str, torch.cuda.get_device_capability()))
        found["DISTFORGE_BUILD_CUDA"] = "1"
        # Of 9.0 there is code for its own instructions alone.
        found["DISTFORGE_CUDA_ARCHITECTURES"] = {"90": "90a"}.get(capability, capability)
    return found


def run(stage: Stage, out: Path, device: str, seconds: float) -> dict[str, Any]:
    """Run a stage for at most ``seconds``: what became of it."""
    missing = [module for module in stage.needs if find_spec(module) is None]
    if missing:
        return {"left_out": f"without {', '.join(missing)}"}
    log, began = out / f"{stage.name}.log", time.monotonic()
    with durable.replacing(log) as partial, partial.open("xb") as stream:
        process = subprocess.Popen(
            [sys.executable, *stage.command],
            cwd=ROOT,
            env=environment(device),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    if status not in stage.well:
        result["tail"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return result


def tell(name: str, result: dict[str, Any]) -> None:
    if "left_out" in result:
        print(f"{name}: left out, {result['left_out']}", flush=True)
        return
    status = result["status"]
    ending = "took too long" if status is None else f"status {status}"
    print(f"{name}: {ending} after {result['seconds']} s", flush=True)
    for line in result.get("tail", []):
        print(f"    {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where all that is found lies")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.rehearse:
        parser.error("torch sees no GPU; --rehearse does all but the launches")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began, found = time.monotonic(), {}
    patience = 1.0 if device == "cuda" else REHEARSAL
    for stage in stages(out, device):
        left = patience * BUDGET_SECONDS - (time.monotonic() - began)
        found[stage.name] = run(stage, out, device, min(patience * stage.seconds, left))
        tell(stage.name, found[stage.name])
        summary = {"machine": machine(), "versions": versions(), "stages": found}
        durable.write_json(out / "first_light.json", summary)
    return int(any("tail" in result for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
