"""The stages of phase 3: what each leaves, whether that is there and whole, and how it is made.

What lies where a stage writes is taken for its output when it is of the same configuration, was
made from the same inputs, and has every byte that its manifest lists. Where an earlier stage made
other inputs meanwhile (step 1 was redone), it is made anew. What was changed by hand, is of another
configuration or of other data may be somebody's work: it is refused, and ``--force-from`` is the
word to have it made anew all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from distforge import durable
from distforge.baking import Step1Config, run_step1_baking
from distforge.baking.config import NOT_IDENTITY as STEP1_NOT_IDENTITY
from distforge.champion.make import (
    RECORD_FILE,
    ensure_champion,
    is_made,
    remove_champion,
    unfinished,
)
from distforge.config import config_sha256
from distforge.errors import InputError
from distforge.models.weight_files import weights_sha256
from distforge.quietstar import Step2Config, run_step2_rl
from distforge.quietstar.step2_config import NOT_IDENTITY as STEP2_NOT_IDENTITY
from distforge.registry.manifest import verify_manifest
from distforge.reports.formats import interval, points
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.step2_summary import Step2Summary
from distforge.training.distributed import World
from distforge.training.keeping import CHECKPOINTS_DIRECTORY
from distforge.training.previous import set_aside
from distforge.training.run_directory import (
    IDENTITY_FILE,
    INPUTS_FILE,
    SUMMARY_FILE,
    is_finished,
    locked,
    withdraw,
)
from distforge.training.run_inputs import path_sha256

StageName = Literal["champion", "step1", "step2", "report"]
State = Literal["finished", "unfinished", "absent", "outdated"]


@dataclass(frozen=True)
class Found:
    """What lies where a stage writes, and in words why it is taken for that."""

    state: State
    why: str


class Stage(Protocol):
    """One stage; ``run`` is collective, all else is for rank 0 alone."""

    @property
    def name(self) -> StageName: ...

    def find(self) -> Found:
        """What there is of its output; `InputError` where that can be neither used nor replaced."""

    def run(self) -> None:
        """Make the output, from where an earlier call left it."""

    def missed(self) -> list[str]:
        """What the output falls short of, in words."""

    def remove(self) -> None:
        """Make room for a new output; what is there is kept, hidden, until that has ended.

        `InputError` where it is not this program's, or in use.
        """


@dataclass(frozen=True)
class ChampionStage:
    """The model that step 1 starts from, where it is to be made."""

    config: Step1Config
    world: World
    name: StageName = "champion"

    def find(self) -> Found:
        """By its recipe, and by the manifest in it."""
        champion = self.config.champion
        path = Path(champion.path)
        if not champion.make:
            return Found("finished", f"{champion.path} is given")
        with _remedied("champion"):
            if is_made(champion):
                return Found("finished", f"{path} is there, of this recipe and unchanged")
        latest = _latest(unfinished(path))
        if latest:
            return Found("unfinished", f"{path} resumes from {latest}")
        return Found("absent", f"{path} is not there")

    def run(self) -> None:
        config = self.config
        ensure_champion(config.champion, config.engine, config.data.max_length, self.world)

    def missed(self) -> list[str]:
        """Nothing: a champion has no mark of its own."""
        return []

    def remove(self) -> None:
        path = Path(self.config.champion.path)
        if not self.config.champion.make:
            return
        if path.exists() and not (path / RECORD_FILE).is_file():
            raise InputError(f"{path} was not made here, so it is not removed; give another path")
        remove_champion(path)


class RunStage:
    """A step, whose output is a run's directory with a model.

    Args:
        name: of the stage. directory: of the run.
        identity: hash of what makes two runs the same.
        inputs: what it starts from, by name; each a hash, asked for when it is there. The first is
            the model.
        made: whether an earlier stage makes that model.
        summary: reads the run's summary: the weights' hash that it started from, and what it falls
            short of.
        run: the step itself.
        force: take what started from other data, or from another model that is given, as it is.
    """

    def __init__(
        self,
        name: StageName,
        directory: Path,
        identity: str,
        inputs: Callable[[], Mapping[str, str]],
        made: bool,
        summary: Callable[[Path], tuple[str, list[str]]],
        run: Callable[[], object],
        world: World,
        force: bool = False,
    ) -> None:
        self.name: StageName = name
        self.directory = directory
        self._identity, self._inputs, self._made = identity, inputs, made
        self._summary = summary
        self._run, self._world, self._force = run, world, force

    def find(self) -> Found:
        """By the hash of its configuration, of its inputs, and by its model's manifest."""
        directory, marker = self.directory, self.directory / IDENTITY_FILE
        if not marker.is_file():
            return Found("absent", f"{directory} is not there")
        if marker.read_text(encoding="utf-8").strip() != self._identity:
            raise InputError(
                f"{directory} holds a run of another configuration (see its config.toml); give "
                f"another name or --output, or have it made again with --force-from {self.name}"
            )
        with _remedied(self.name):
            if changed := self._changed_input():
                is_model = changed == next(iter(self._inputs()))
                if self._made and is_model:
                    return Found("outdated", f"{directory} started from another {changed}")
                if not self._force:
                    raise InputError(f"{directory} started from another {changed} than is there")
            if not (directory / SUMMARY_FILE).is_file():
                latest = _latest(directory)
                return Found("unfinished", f"{directory} resumes from {latest or 'its beginning'}")
            verify_manifest(directory / "model")
        return Found("finished", f"{directory} is finished, its model is unchanged")

    def run(self) -> None:
        if self._world.is_main:
            self.directory.mkdir(parents=True, exist_ok=True)
            durable.write_json(self.directory / INPUTS_FILE, self._inputs())
        self._world.barrier()
        try:
            self._run()
        except InputError:
            if self._world.is_main:
                withdraw(self.directory)
            raise

    def missed(self) -> list[str]:
        return self._summary(self.directory)[1]

    def remove(self) -> None:
        if not self.directory.exists():
            return
        if not (self.directory / IDENTITY_FILE).is_file():
            raise InputError(
                f"{self.directory} is not a run of distforge, so it is not removed; give another "
                "name or --output"
            )
        with locked(self.directory):
            set_aside(self.directory, is_finished)

    def _changed_input(self) -> str:
        """The name of an input that is another one today, or nothing."""
        noted = self.directory / INPUTS_FILE
        # A step that was called by itself noted nothing; its summary says the one that matters.
        known: dict[str, Any] = (
            json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
        )
        today = self._inputs()
        if (self.directory / SUMMARY_FILE).is_file():
            known = {**known, next(iter(today)): self._summary(self.directory)[0]}
        return next((n for n, v in today.items() if v and known.get(n, v) not in (v, "")), "")


def step1_stage(config: Step1Config, world: World) -> RunStage:
    """Step 1: data, baking, exam, registry."""

    def inputs() -> dict[str, str]:
        return {
            "champion": weights_sha256(config.champion.path),
            "data": path_sha256(config.data.path),
        }

    def summary(directory: Path) -> tuple[str, list[str]]:
        found = Step1Summary.read(directory / SUMMARY_FILE)
        short = "; ".join(found.shortfalls) or "a target was missed"
        return found.champion_sha256, [] if found.converged else [
            f"step 1 did not converge ({short})"
        ]

    return RunStage(
        "step1",
        Path(config.output) / config.name,
        config_sha256(config, exclude=STEP1_NOT_IDENTITY),
        inputs,
        config.champion.make,
        summary,
        lambda: run_step1_baking(config, world),
        world,
        config.resume == "force",
    )


def step2_stage(config: Step2Config, world: World) -> RunStage:
    """Step 2: reinforcement, exam, verdict, registry, hand-off."""

    def inputs() -> dict[str, str]:
        data = config.text.path if config.task == "text" else config.data.path
        return {
            "baked model": weights_sha256(str(Path(config.baked) / "model")),
            "data": path_sha256(data or ""),
        }

    return RunStage(
        "step2",
        Path(config.output) / config.name,
        config_sha256(config, exclude=STEP2_NOT_IDENTITY),
        inputs,
        True,
        _step2_outcome,
        lambda: run_step2_rl(config, world),
        world,
        config.resume == "force",
    )


def _step2_outcome(directory: Path) -> tuple[str, list[str]]:
    found = Step2Summary.read(directory / SUMMARY_FILE)
    missed = []
    if not found.improved:
        lead = found.lead
        shown = f"{points(lead.mean)} {interval(lead.low, lead.high, points)}"
        missed.append(f"step 2 does not show that it beats the baked model ({shown})")
    if found.verdict != "PASS":
        missed.append(f"the verdict is {found.verdict or 'missing: step 2 was not judged'}")
    if found.ended_by_verdict:
        missed.append(
            f"THEATRE ended training after {len(found.rollbacks)} rollbacks; what passed last is "
            "kept"
        )
    return found.baked_sha256, missed


@contextmanager
def _remedied(name: StageName) -> Iterator[None]:
    """An `InputError` inside is raised with the remedy that `distforge run` has for it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; or have it made again with --force-from {name}") from error


def _latest(directory: Path) -> str:
    """The name of the newest checkpoint in a run's directory, or nothing."""
    found = (directory / CHECKPOINTS_DIRECTORY).glob("step_*")
    steps = [int(p.name[5:]) for p in found if p.name[5:].isdecimal()]
    return f"step {max(steps)}" if steps else ""
