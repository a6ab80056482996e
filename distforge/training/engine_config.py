"""How a step is computed: processes, ZeRO stage, precision."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from distforge.errors import InputError, require_choice, require_in
from distforge.optim.precision import cpu_multiplies_bfloat16, fastest_dtype, has_no_tensor_cores

if TYPE_CHECKING:  # `distforge doctor` has this module where torch alone is installed
    from distforge.models.storage import TrainDtype

Backend = Literal["auto", "deepspeed", "plain"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """How a step is computed.

    backend: "plain" is one process of bare torch; "deepspeed" any number; "auto" takes DeepSpeed
        when there are several ranks or ``zero_stage`` > 0.
    zero_stage: 0 (weights, gradients and optimizer state on every rank) to 3 (all sharded).
    offload_optimizer: keep the optimizer's state in host memory (stages 1 to 3).
    dtype: "auto" is bfloat16 on a GPU or CPU that multiplies in it, float16 on a GPU whose tensor
        cores know only that, and float32 on others: GTX 16 cards have none and give NaN in float16,
        and a CPU without instructions for bfloat16 is many times slower in it.
    max_grad_norm: clip the global gradient norm to this; 0 is off.
    activation_checkpointing: recompute activations in the backward pass, to save memory.
    qk_clip_every: steps between two uses of QK-Clip, which records attention logits; 0 is never.
        The threshold is the optimizer's.
    optimizer_metrics_every: steps between two measurements of MuonGrokfast's update; 0 is never.
    """

    backend: Backend = "auto"
    zero_stage: int = 0
    offload_optimizer: bool = False
    dtype: Dtype = "auto"
    max_grad_norm: float = 1.0
    activation_checkpointing: bool = False
    qk_clip_every: int = 10
    optimizer_metrics_every: int = 50

    def __post_init__(self) -> None:
        require_choice("backend", self.backend, get_args(Backend))
        require_choice("dtype", self.dtype, get_args(Dtype))
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"zero_stage is {self.zero_stage}; expected 0, 1, 2 or 3")
        if self.backend == "plain" and self.zero_stage > 0:
            raise InputError(
                f"zero_stage is {self.zero_stage} with backend 'plain'; "
                "use backend 'auto' or zero_stage 0"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise InputError("offload_optimizer needs zero_stage 1, 2 or 3; it is 0")
        for name in ("max_grad_norm", "qk_clip_every", "optimizer_metrics_every"):
            require_in("[0, inf]", **{name: getattr(self, name)})

    def uses_deepspeed(self, world_size: int) -> bool:
        """Whether this configuration runs through DeepSpeed on ``world_size`` ranks."""
        if self.backend == "plain" and world_size > 1:
            raise InputError(f"backend 'plain' is one process, not {world_size}; use 'auto'")
        return self.backend == "deepspeed" or world_size > 1 or self.zero_stage > 0

    def clips_itself(self) -> bool:
        """Whether gradients lie whole and reduced in ``param.grad`` when a step begins."""
        return self.zero_stage == 0

    def halves_weights(self, dtype: str) -> bool:
        """Whether weights are kept in ``dtype`` beside fp32 masters; else all of them are fp32."""
        return dtype == "float16" and self.zero_stage > 0

    def shards_one_by_one(self, dtype: str) -> bool:
        """Whether every weight is made float32 and sharded by itself, before DeepSpeed begins."""
        return self.zero_stage == 3 and not self.halves_weights(dtype)

    def load_dtype(self, device: torch.device) -> TrainDtype:
        """What to load a model in that will be trained as it is loaded."""
        if self.zero_stage < 3:  # nor is anything said of dtypes then
            return "float32"
        one_by_one = self.shards_one_by_one(resolve_dtype(self.dtype, device))
        return "stored" if one_by_one else "float32"


def resolve_dtype(dtype: Dtype, device: torch.device) -> str:
    """The dtype that "auto" means on ``device``; `InputError` for one it cannot compute in."""
    if dtype == "float16" and device.type == "cpu":
        raise InputError("dtype is 'float16' on a CPU, which cannot train in it; use 'float32'")
    if dtype == "bfloat16" and device.type == "cpu" and not cpu_multiplies_bfloat16():
        logger.warning(
            "dtype is 'bfloat16', for which this CPU has no instructions: steps will take many "
            "times as long as in 'float32'; leave dtype at 'auto'"
        )
    if dtype == "float16" and has_no_tensor_cores(device):
        logger.warning(
            "dtype is 'float16' on %s, which gives NaN on many cards of its kind and is hardly "
            "faster there; leave dtype at 'auto'",
            torch.cuda.get_device_name(device),
        )
    if dtype != "auto":
        return dtype
    chosen = str(fastest_dtype(device)).removeprefix("torch.")
    if device.type != "cpu":
        logger.info("dtype auto: %s on %s", chosen, torch.cuda.get_device_name(device))
    return chosen
