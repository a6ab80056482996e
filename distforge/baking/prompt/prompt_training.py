"""One bake: a student trained to do without the prompt, over the one training engine and loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.batches import PromptBatches
from distforge.baking.prompt.delta import (
    Delta,
    add_adapter,
    is_adapter,
    lora_config,
    weights_sha256,
    with_explicit_modules,
)
from distforge.baking.prompt.distillation import DistillationLoss, logits_are_linear
from distforge.baking.prompt.heldout import mean_kl
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.prompt.teacher_cache import write_down_teacher
from distforge.baking.prompt.trajectories import (
    PromptedQuestion,
    Trajectory,
    write_trajectories,
)
from distforge.optim import build_optimizer
from distforge.rendering.stops import padding_id
from distforge.telemetry import RunLogger
from distforge.telemetry.metrics import PROMPT_HELDOUT_KL
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import resolve_dtype
from distforge.training.guards import GuardConfig, StepGuard
from distforge.training.host_memory import return_freed_memory
from distforge.training.keeping import Keeper
from distforge.training.supervised import TrainingLoop


@dataclass(frozen=True)
class BakeOutcome:
    """How a bake went: held-out KL in nats a token by step, the first being that of step 0."""

    curve: tuple[tuple[int, float], ...]
    steps: int
    stopped_early: bool

    @property
    def kl_before(self) -> float:
        """KL(prompted teacher ‖ model without the prompt) before any step."""
        return self.curve[0][1]

    @property
    def kl_after(self) -> float:
        """The same, of the baked model."""
        return self.curve[-1][1]


class BakeTraining:
    """Trains one bake; every method is collective over the world's ranks.

    Args:
        base: the model that is baked into. It is the same when a bake has ended as before, unless
            the process ends inside it.
        tokenizer: its tokenizer.
        questions: to train on; the student writes its own responses to them where it is asked to.
        trajectories: the prompted teacher's responses to ``questions``, in their order.
        heldout: its responses to other questions, on which KL is measured.
        config: see `PromptBakingConfig`.
        world: this process.
        logger: where metrics go.
        directory: where checkpoints are resumed from and saved, at every evaluation; or None.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[PromptedQuestion],
        trajectories: Sequence[Trajectory],
        heldout: Sequence[Trajectory],
        config: PromptBakingConfig,
        world: World,
        logger: RunLogger,
        directory: Path | None = None,
    ) -> None:
        self._base = base
        self._tokenizer = tokenizer
        self._questions = questions
        self._trajectories = trajectories
        self._heldout = heldout
        self._config = config
        self._world = world
        self._logger = logger
        self._directory = directory
        self._curve: list[tuple[int, float]] = []
        self._stopped = False
        self._first_step = 0
        # Of the teacher on ``heldout``, where they are kept.
        self._states: Sequence[Mapping[str, Tensor]] | None = None

    def run(self, first_step: int = 0) -> tuple[Delta, BakeOutcome]:
        """Train to the end or to the wanted KL; the log's steps count from ``first_step``."""
        base_sha256 = weights_sha256(self._base)
        with self._student() as (student, teacher):
            self._loss = DistillationLoss(
                teacher,
                states=logits_are_linear(student),
                beta=self._config.beta,
                top_k=self._config.top_k,
                chunk_elements=self._config.chunk_elements,
            )
            self._engine = TrainingEngine(
                student,
                lambda module: build_optimizer(module, self._config.optimizer),
                self._config.engine,
                self._world,
                self._config.training.micro_batches,
                loss=self._loss,
            )
            every = self._config.evaluate_every
            self._keeper = Keeper(self, self._engine, self._directory, self._world, every, every)
            guard = StepGuard(GuardConfig(), self._world)
            self._loop = TrainingLoop(self._engine, self._batches(), self._config.training, guard)
            return_freed_memory()  # of answers written and read, before steps need other blocks
            self._train(first_step)
            delta = self._difference(base_sha256)
        return delta, BakeOutcome(tuple(self._curve), self._loop.step, self._stopped)

    @contextmanager
    def _student(self) -> Iterator[tuple[PreTrainedModel, nn.Module | None]]:
        """The module to train and its teacher: None is the student itself, adapters off."""
        if self._config.method == "full":
            yield copy.deepcopy(self._base).float(), self._base
            return
        # ZeRO 3 takes a model apart, fp16 rounds it, and DeepSpeed wants one dtype; the base must
        # outlive the bake.
        engine = self._config.engine
        spoils = engine.zero_stage == 3 or engine.halves_weights(
            resolve_dtype(engine.dtype, self._world.device)
        )
        mixes = self._base.dtype != torch.float32 and engine.uses_deepspeed(self._world.size)
        spoils = spoils or mixes
        student = copy.deepcopy(self._base).float() if spoils else self._base
        trained = {name: p.requires_grad for name, p in student.named_parameters()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed)
            wrapped = add_adapter(student, lora_config(self._config.lora))
        try:
            yield student, None
        finally:
            if not spoils:
                wrapped.unload()
                for name, parameter in student.named_parameters():
                    parameter.requires_grad_(trained[name])

    def _batches(self) -> PromptBatches:
        config = self._config
        pad = padding_id(self._tokenizer)

        def rewrite(indices: Sequence[int], seed: int) -> list[Trajectory]:
            with self._engine.whole_model() as model:
                return write_trajectories(
                    model,
                    self._tokenizer,
                    [self._questions[index] for index in indices],
                    self._world,
                    by_teacher=False,
                    temperature=config.temperature,
                    seed=seed,
                    max_new_tokens=config.max_response_tokens,
                    batch_size=config.generation_batch_size,
                )

        targets = None
        if config.cache_teacher:
            device, whole = self._world.device, replace(self._loss, top_k=0)
            with self._engine.whole_model() as model:
                self._states = write_down_teacher(model, whole, self._heldout, device, pad)
                if config.on_policy < 1:
                    targets = write_down_teacher(model, self._loss, self._trajectories, device, pad)
        return PromptBatches(
            self._trajectories,
            config.training,
            self._world,
            pad,
            config.on_policy,
            rewrite,
            targets,
        )

    def _train(self, first_step: int) -> None:
        self._first_step = first_step
        self._keeper.resume()
        self._loop.step = self._keeper.step
        if self._keeper.evaluation_due or not self._curve:
            self._keeper.evaluate()
        total = self._loop.total_steps
        progress = self._logger.progress(first_step + total, "baking", first_step + self._loop.step)
        with progress, self._keeper.stopping_between_steps():
            for record in self._loop.steps() if not self._stopped else ():
                self._logger.log(first_step + record.step, record.as_metrics())
                self._keeper.after_step(record.step, total)
                if self._stopped:
                    break

    # What the keeper asks for.

    def evaluate(self, step: int) -> None:
        """Measure the held-out KL; log it, and stop where it is low enough."""
        with self._engine.whole_model() as model:
            value = mean_kl(
                model, self._loss, self._heldout, self._world, self._pad(), self._states
            )
        self._curve.append((step, value))
        self._logger.log(self._first_step + step, {PROMPT_HELDOUT_KL: value})
        goal = self._config.stop_fraction * self._curve[0][1]
        self._stopped = self._config.stop_fraction > 0 and value <= goal

    def state_dict(self) -> dict[str, Any]:
        """See `Trainee`."""
        return {"curve": self._curve, "stopped": self._stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Trainee`."""
        self._curve = [(step, value) for step, value in state["curve"]]
        self._stopped = state["stopped"]

    def _difference(self, base_sha256: str) -> Delta:
        with self._engine.whole_model() as model:
            weights = {
                name: parameter.detach().float().cpu().clone()
                for name, parameter in model.named_parameters()
                if self._config.method == "full" or is_adapter(name)
            }
            if self._config.method == "lora":
                adapter = with_explicit_modules(lora_config(self._config.lora), model)
                return Delta(weights, adapter, base_sha256)
        before = dict(self._base.named_parameters())
        return Delta(
            {name: value - before[name].detach().float().cpu() for name, value in weights.items()},
            None,
            base_sha256,
        )

    def _pad(self) -> int:
        return padding_id(self._tokenizer)
