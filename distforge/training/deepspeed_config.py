"""The DeepSpeed JSON that follows from our configuration: derived, never written by hand."""

from __future__ import annotations

from typing import Any

from distforge.training.engine_config import EngineConfig


def deepspeed_config(
    config: EngineConfig, dtype: str, world_size: int, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's configuration for ``accumulation`` micro-batches a rank and step.

    The optimizer is always ours (DeepSpeed's own ones compile for minutes at the first start), so
    ``zero_allow_untested_optimizer`` is set. ``dtype`` is "float32", "bfloat16" or "float16".
    The micro-batch size is nominal: micro-batches are cut by tokens, and the loss is normalised by
    the targets of the whole step.
    """
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world_size,
        # Stage 0 in fp32 is clipped by us, by the same code as the plain process.
        "gradient_clipping": 0.0 if config.clips_itself(dtype) else config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "round_robin_gradients": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if config.offload_optimizer:
        result["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if dtype == "bfloat16":
        result["bf16"] = {"enabled": True}
    if dtype == "float16":
        result["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return result
