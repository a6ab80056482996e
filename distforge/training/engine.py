"""The one training engine: micro-batches in, one optimizer step out, whatever the cluster.

The loss of a step is the mean over all target tokens of the step, on all ranks together, so that
the curve is the same for any number of ranks and any way of cutting micro-batches.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.models.attention import AttentionLogits
from distforge.optim import MuonGrokfast
from distforge.optim.metrics import OptimizerMetrics
from distforge.optim.schedule import apply_lr
from distforge.training.backends import (
    Backend,
    DeepSpeedBackend,
    PlainBackend,
    shard_weights,
)
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig, resolve_dtype
from distforge.training.guards import (
    LossSpikeError,
    NonFiniteGradientError,
    NonFiniteLossError,
    SkippedStepError,
    VetoedStepError,
)
from distforge.training.loss import Loss, sum_loss
from distforge.training.shards import ShardWriter
from distforge.training.step_result import StepResult

_LARGEST = sys.float_info.max

logger = logging.getLogger(__name__)


class TrainingEngine:
    """Trains ``model`` in place.

    Args:
        model: a Hugging Face causal LM in fp32; or as `EngineConfig.load_dtype` has it loaded.
        build_optimizer: makes the optimizer, once the model stands on its device or, at ZeRO 3,
            while it is whole where it was loaded.
        config: see `EngineConfig`.
        world: this process among the others.
        micro_batches: micro-batches a step, over all ranks together.
        loss: what a micro-batch costs, summed over its targets; cross-entropy by default.
        veto: asked on every rank alike when all micro-batches of a step went forward: why the step
            should not be taken, or "".

    Raises:
        InputError: the micro-batches do not divide by the ranks, or the dtype does not suit the
            device, or "auto" is not the same on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        config: EngineConfig,
        world: World,
        micro_batches: int,
        loss: Loss = sum_loss,
        veto: Callable[[World], str] | None = None,
    ) -> None:
        if micro_batches % world.size:
            raise InputError(
                f"micro_batches is {micro_batches}; expected a multiple of the {world.size} ranks"
            )
        self._world = world
        self._config = config
        self._loss = loss
        self._veto = veto
        self.accumulation = micro_batches // world.size
        dtype = self._dtype = _common_dtype(config, world)
        sharded = config.shards_one_by_one(dtype)
        # Sharded weights are moved one by one, below: all of them may not fit.
        self._module = model if sharded else model.to(world.device)
        if dtype == "bfloat16" and world.device.type == "cpu":
            _avoid_fused_attention(model)
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        optimizer = build_optimizer(model)
        self._qk_threshold = _qk_threshold(optimizer) if config.qk_clip_every else 0.0
        self._logits = _recorder(model) if self._qk_threshold else None
        if sharded:
            shard_weights(model, config, dtype, world, self.accumulation)
            model.to(world.device)  # buffers
        self._backend: Backend
        if config.uses_deepspeed(world.size):
            self._backend = DeepSpeedBackend(
                model, optimizer, config, dtype, world, self.accumulation
            )
        else:
            self._backend = PlainBackend(model, optimizer, config, dtype)
        self._steps = 0

    def train_step(
        self,
        micro_batches: Sequence[Mapping[str, Tensor]],
        lr_factor: float,
        global_target_tokens: int,
        loss_limit: float = math.inf,
    ) -> StepResult:
        """One optimizer step on this rank's micro-batches (``accumulation`` many; or fewer, but at
        least one, where it ``takes_fewer``).

        Each holds what the loss reads; cross-entropy reads ``input_ids``, ``attention_mask`` and
        ``labels`` of shape (batch, length).
        ``global_target_tokens`` counts the labelled tokens of the step over all ranks. Raises a
        `SkippedStepError`, on all ranks alike, with the weights as they were and ready for the next
        step, when loss or gradient is not finite or the loss exceeds ``loss_limit`` (float16
        skips the step of an infinite gradient by itself and lowers its loss scale).
        """
        least = 1 if self.takes_fewer else self.accumulation
        assert least <= len(micro_batches) <= self.accumulation
        self._module.train()
        apply_lr(self._backend.optimizer, lr_factor)
        sampled = self._logits is not None and self._steps % self._config.qk_clip_every == 0
        if sampled:
            assert self._logits is not None
            self._logits.enable()
        loss_sum = correct = 0.0
        refused, objection = False, ""
        for number, batch in enumerate(micro_batches, start=1):
            on_device = {key: value.to(self._world.device) for key, value in batch.items()}
            with self._backend.autocast():
                loss, hits = self._loss(self._backend.forward_module, on_device)
            loss_sum += float(loss.detach())
            correct += float(hits)
            if number == len(micro_batches):
                loss_sum, correct = self._world.all_reduce_sum([loss_sum, correct])
                objection = self._veto(self._world) if self._veto else ""
                refused = not loss_sum <= min(loss_limit * global_target_tokens, _LARGEST)
                refused = refused or bool(objection)
                # Every backend skips, as a whole and on all ranks, what has no finite norm.
                loss = loss * math.nan if refused else loss
            self._backend.backward(loss / global_target_tokens)
        mean = loss_sum / global_target_tokens
        lr = float(self._backend.optimizer.param_groups[0]["lr"])
        clipped = self._clip_attention() if sampled and not refused else 0
        # A step that is refused for a finite loss says nothing of what float16 holds.
        fits = refused and math.isfinite(loss_sum)
        scaling = self._backend.loss_scaling() if fits else {}
        norm, optimizer, taken = self._update()
        if fits:
            self._backend.restore_loss_scaling(scaling)
        self._steps += 1
        accuracy = correct / global_target_tokens
        if refused or not taken:
            assert not (refused and math.isfinite(norm)), "a refused step was taken"
            if self._logits is not None:
                self._logits.disable()
            raise self._skipped(StepResult(mean, norm, lr, accuracy, 0), loss_limit, objection)
        return StepResult(mean, norm, lr, accuracy, clipped, optimizer)

    @property
    def takes_fewer(self) -> bool:
        """Whether a step may have fewer micro-batches than usual: DeepSpeed and other ranks count
        them."""
        return isinstance(self._backend, PlainBackend)

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model with whole weights on every rank, for generating and exporting; collective."""
        with self._backend.whole_model(self._module) as module:
            yield module

    def save(self, directory: Path) -> list[str]:
        """Write weights, optimizer and this rank's random state into ``directory``; collective.

        Returns which files this rank wrote, see `begin_checkpoint`.
        """
        shards = ShardWriter(directory)
        self._backend.save(directory, shards)
        state = {"layout": self._layout(), "torch": torch.get_rng_state(), "steps": self._steps}
        if self._world.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._world.device)
        shards.save(state, directory / _rng_file(self._world.rank))
        return shards.paths

    def load(self, directory: Path) -> None:
        """Read what `save` wrote; collective.

        The same layout (backend, stage, precision, ranks) resumes bit by bit. A checkpoint of ZeRO
        1 to 3 is also read at another of these stages and on another number of ranks: weights and
        optimizer are the same, the random state is that of the saved rank of the same number, or
        of rank 0. The directory must be trusted or its manifest verified: ZeRO's shards are
        pickles. Raises InputError when it cannot be read here, before anything has changed.
        """
        path = directory / _rng_file(self._world.rank)
        path = path if path.is_file() else directory / _rng_file(0)
        if not path.is_file():
            raise InputError(
                f"{directory} has no {path.name}: it is no checkpoint of a training engine"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["layout"] == self._layout():
            self._backend.load(directory)
        else:
            self._require_convertible(directory, state["layout"])
            assert isinstance(self._backend, DeepSpeedBackend)
            self._backend.load_converted(directory)
        torch.set_rng_state(state["torch"])
        if "cuda" in state and self._world.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._world.device)
        self._steps = state["steps"]

    def _require_convertible(self, directory: Path, saved: str) -> None:
        mine = self._layout()
        for layout in (saved, mine):
            if not layout.startswith("deepspeed") or "zero_stage 0" in layout:
                raise InputError(
                    f"{directory} was saved by {saved}, but this engine is {mine}; resume with "
                    "what saved it (only ZeRO 1 to 3 go from one to another)"
                )

    def _layout(self) -> str:
        name = "deepspeed" if isinstance(self._backend, DeepSpeedBackend) else "plain"
        stage = self._config.zero_stage
        return f"{name}, zero_stage {stage}, {self._dtype}, {self._world.size} ranks"

    def _update(self) -> tuple[float, OptimizerMetrics | None, bool]:
        """The gradient's norm before clipping, what was sampled, whether the step was taken."""
        optimizer, every = self._backend.optimizer, self._config.optimizer_metrics_every
        muon = optimizer if isinstance(optimizer, MuonGrokfast) else None
        measured = muon if every and self._steps % every == 0 else None
        if measured:
            measured.start_sampling()
        try:
            norm = self._backend.step()
            taken = math.isfinite(norm)
            return norm, measured.sampled() if measured and taken else None, True
        except FloatingPointError:
            return math.nan, None, False
        finally:
            if muon:
                muon.drop_edits()

    def _skipped(self, measured: StepResult, loss_limit: float, objection: str) -> SkippedStepError:
        step, fix = self._steps, "lower the learning rate or look for broken examples"
        if not math.isfinite(measured.loss):
            return NonFiniteLossError(
                f"the loss of step {step} is {measured.loss}; {fix}", measured
            )
        if measured.loss > loss_limit:
            return LossSpikeError(
                f"the loss of step {step} is {measured.loss:.4g}, above the limit of "
                f"{loss_limit:.4g} that the steps before it set; {fix}",
                measured,
            )
        if objection:
            return VetoedStepError(f"step {step} was not taken: {objection}", measured)
        return NonFiniteGradientError(f"the gradient of step {step} is not finite; {fix}", measured)

    def _clip_attention(self) -> int:
        """Have the optimizer scale the heads that grew too far, right after its update."""
        optimizer = self._backend.optimizer
        assert self._logits is not None
        assert isinstance(optimizer, MuonGrokfast)
        try:
            return self._logits.apply_clip(
                self._qk_threshold,
                all_reduce_max=self._world.all_reduce_max,
                edit=optimizer.edit_after_step,
            )
        except InputError as error:  # nothing was measured, on any rank
            _say_unclipped(str(error))
            self._logits = None
            return 0


def _recorder(model: nn.Module) -> AttentionLogits | None:
    """None where the model's attention cannot be clipped: the threshold is a default, and what a
    user did not ask for must not keep a model from training."""
    try:
        return AttentionLogits(model)
    except InputError as error:
        _say_unclipped(str(error))
        return None


@functools.cache
def _say_unclipped(reason: str) -> None:
    """Once a process and reason."""
    logger.warning("training continues without QK-Clip: %s", reason)


def _rng_file(rank: int) -> str:
    return f"rank_{rank}.pt"


def _common_dtype(config: EngineConfig, world: World) -> str:
    """What ``config.dtype`` means on all ranks, which add up each other's gradients."""
    dtype = resolve_dtype(config.dtype, world.device)
    first, *others = world.gather_objects(dtype)
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise InputError(
                f"dtype 'auto' is {first!r} on rank 0 and {other!r} on rank {rank}, whose "
                "processors differ: set engine.dtype to one that suits all ranks"
            )
    return dtype


def _avoid_fused_attention(model: Any) -> None:
    """On a CPU, torch's fused attention takes four times as long backward in bfloat16."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("eager")


def _qk_threshold(optimizer: torch.optim.Optimizer) -> float:
    if not isinstance(optimizer, MuonGrokfast):
        return 0.0
    return optimizer.config.qk_clip_threshold or 0.0
