"""The DeepSpeed JSON that follows from our configuration: derived, never written by hand."""

from __future__ import annotations

from typing import Any

from distforge.training.engine_config import EngineConfig

# Gradients are gathered up to this many elements and then reduced at once. ZeRO allocates the whole
# bucket whatever the size of the model.
BUCKET_ELEMENTS = 50_000_000


def deepspeed_config(
    config: EngineConfig, dtype: str, world_size: int, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's configuration for ``accumulation`` micro-batches a rank and step.

    The optimizer is always ours (DeepSpeed's own ones compile for minutes at the first start), so
    ``zero_allow_untested_optimizer`` is set. ``dtype`` is "float32", "bfloat16" or "float16".

    Low precision is torch's autocast over fp32 weights, as in the plain process, and gradients are
    reduced in fp32. DeepSpeed's own "bf16" section rounds weights and accumulated gradients:
    after 6 steps of a tiny model, weights were 1e-2 away from the plain process, not 2e-6. Only
    float16 above stage 0 takes its "fp16" section, whose loss scaling knows sharded gradients.

    The micro-batch size is nominal: micro-batches are cut by tokens, and the loss is normalised by
    the targets of the whole step.
    """
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world_size,
        # Stage 0 is clipped by us, by the same code as the plain process.
        "gradient_clipping": 0.0 if config.clips_itself() else config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "round_robin_gradients": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if config.offload_optimizer:
        result["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.halves_weights(dtype):
        result["fp16"] = {"enabled": True, "initial_scale_power": 16}
    elif dtype != "float32":
        # Modules named in the list would be reduced in ``dtype``, which depends on the world size.
        result["torch_autocast"] = {
            "enabled": True,
            "dtype": dtype,
            "lower_precision_safe_modules": [],
        }
    return result
