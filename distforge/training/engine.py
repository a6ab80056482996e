"""The one training engine: micro-batches in, one optimizer step out, whatever the cluster.

The loss of a step is the mean over all target tokens of the step, on all ranks together, so that
the curve is the same for any number of ranks and any way of cutting micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.models.attention import AttentionLogits
from distforge.optim.schedule import apply_lr
from distforge.training.backends import Backend, DeepSpeedBackend, PlainBackend
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig, resolve_dtype
from distforge.training.loss import sum_loss


class NonFiniteLossError(FloatingPointError):
    """The loss of a step is not a number: training has diverged or the data are broken."""


class NonFiniteGradientError(FloatingPointError):
    """The gradient of a step is infinite or not a number, though its loss is finite."""


@dataclass(frozen=True)
class StepResult:
    """One step over all ranks.

    ``loss``: mean cross-entropy in nats per target token. ``grad_norm``: global norm before
    clipping. ``lr``: of the first parameter group. ``token_accuracy``: fraction of targets that the
    argmax hits, teacher-forced. ``clipped_heads``: attention heads that QK-Clip scaled down.
    """

    loss: float
    grad_norm: float
    lr: float
    token_accuracy: float
    clipped_heads: int


class TrainingEngine:
    """Trains ``model`` in place.

    Args:
        model: a Hugging Face causal LM in fp32.
        build_optimizer: makes the optimizer once the model stands on its device.
        config: see `EngineConfig`.
        world: this process among the others.
        micro_batches: micro-batches a step, over all ranks together.

    Raises:
        InputError: the micro-batches do not divide by the ranks, the dtype does not suit the
            device, or the optimizer does not know the ZeRO stage.
    """

    def __init__(
        self,
        model: nn.Module,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        config: EngineConfig,
        world: World,
        micro_batches: int,
    ) -> None:
        if micro_batches % world.size:
            raise InputError(
                f"micro_batches is {micro_batches}; expected a multiple of the {world.size} ranks"
            )
        self._world = world
        self._config = config
        self.accumulation = micro_batches // world.size
        dtype = self._dtype = resolve_dtype(config.dtype, world.device)
        self._module = model.to(world.device)
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        optimizer = build_optimizer(model)
        _require_stage(optimizer, config.zero_stage)
        self._qk_threshold = _qk_threshold(optimizer) if config.qk_clip_every else 0.0
        assert not (self._qk_threshold and config.zero_stage), "QK-Clip would miss ZeRO's masters"
        self._logits = AttentionLogits(model) if self._qk_threshold else None
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
    ) -> StepResult:
        """One optimizer step on this rank's micro-batches (``accumulation`` many).

        Each holds ``input_ids``, ``attention_mask``, ``labels`` of shape (batch, length).
        ``global_target_tokens`` counts the labelled tokens of the step over all ranks. Raises
        `NonFiniteLossError` or `NonFiniteGradientError`, on all ranks alike and with the weights
        as they were, when one of them is not finite (float16 skips such a gradient's step and
        lowers its loss scale).
        """
        assert len(micro_batches) == self.accumulation
        self._module.train()
        apply_lr(self._backend.optimizer, lr_factor)
        sampled = self._logits is not None and self._steps % self._config.qk_clip_every == 0
        if sampled:
            assert self._logits is not None
            self._logits.enable()
        loss_sum = correct = 0.0
        for batch in micro_batches:
            on_device = {key: value.to(self._world.device) for key, value in batch.items()}
            with self._backend.autocast():
                loss, hits = sum_loss(self._backend.forward_module, on_device)
            self._backend.backward(loss / global_target_tokens)
            loss_sum += float(loss.detach())
            correct += float(hits)
        loss_sum, correct = self._world.all_reduce_sum([loss_sum, correct])
        mean = loss_sum / global_target_tokens
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the loss of step {self._steps + 1} is {mean}; lower the learning rate or look "
                "for broken examples"
            )
        lr = float(self._backend.optimizer.param_groups[0]["lr"])
        norm = self._update()
        clipped = self._clip_attention() if sampled else 0
        self._steps += 1
        return StepResult(mean, norm, lr, correct / global_target_tokens, clipped)

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model with whole weights on every rank, for generating and exporting; collective."""
        with self._backend.whole_model(self._module) as module:
            yield module

    def save(self, directory: Path) -> None:
        """Write weights, optimizer and this rank's random state into ``directory``; collective."""
        self._backend.save(directory)
        state = {"layout": self._layout(), "torch": torch.get_rng_state(), "steps": self._steps}
        if self._world.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._world.device)
        torch.save(state, directory / _rng_file(self._world.rank))

    def load(self, directory: Path) -> None:
        """Read what `save` wrote, at the same backend, stage, precision and number of ranks;
        collective. The directory must be trusted or its manifest verified: ZeRO's shards are
        pickles. Raises InputError when it was saved otherwise, before anything has changed.
        """
        path = directory / _rng_file(self._world.rank)
        if not path.is_file():
            raise InputError(
                f"{directory} has no state of rank {self._world.rank}; resume on as many ranks "
                "as saved it"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["layout"] != self._layout():
            raise InputError(
                f"{directory} was saved by {state['layout']}, but this engine is "
                f"{self._layout()}; resume with what saved it"
            )
        self._backend.load(directory)
        torch.set_rng_state(state["torch"])
        if "cuda" in state and self._world.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._world.device)
        self._steps = state["steps"]

    def _layout(self) -> str:
        name = "deepspeed" if isinstance(self._backend, DeepSpeedBackend) else "plain"
        stage = self._config.zero_stage
        return f"{name}, zero_stage {stage}, {self._dtype}, {self._world.size} ranks"

    def _update(self) -> float:
        try:
            return self._backend.step()
        except FloatingPointError as error:
            raise NonFiniteGradientError(
                f"the gradient of step {self._steps + 1} is not finite ({error}); lower the "
                "learning rate or look for broken examples"
            ) from error

    def _clip_attention(self) -> int:
        assert self._logits is not None
        self._logits.disable()
        return self._logits.apply_clip(
            self._qk_threshold,
            all_reduce_max=self._world.all_reduce_max,
        )


def _rng_file(rank: int) -> str:
    return f"rank_{rank}.pt"


def _require_stage(optimizer: torch.optim.Optimizer, stage: int) -> None:
    known = getattr(optimizer, "zero_stages", (0, 1, 2, 3))
    if stage not in known:
        raise InputError(
            f"zero_stage is {stage}, but {type(optimizer).__name__} needs whole matrices and works "
            f"with stage {', '.join(map(str, known))}; use that, or optimizer.name = 'adamw'"
        )


def _qk_threshold(optimizer: torch.optim.Optimizer) -> float:
    config = getattr(optimizer, "config", None)
    return float(getattr(config, "qk_clip_threshold", None) or 0.0)
