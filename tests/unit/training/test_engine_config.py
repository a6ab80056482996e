"""What configurations are accepted, what they mean, and the DeepSpeed JSON derived from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distforge.errors import InputError
from distforge.training import engine_config
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.engine_config import EngineConfig, resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "wrong,named",
    [
        ({"backend": "fsdp"}, "backend is 'fsdp'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"zero_stage": 4}, "zero_stage is 4"),
        ({"backend": "plain", "zero_stage": 1}, "zero_stage is 1 with backend 'plain'"),
        ({"offload_optimizer": True}, "offload_optimizer needs zero_stage"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"qk_clip_every": -1}, "qk_clip_every is -1"),
        ({"optimizer_metrics_every": -1}, "optimizer_metrics_every is -1"),
    ],
)
def test_wrong_values_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        EngineConfig(**wrong)


@pytest.mark.parametrize(
    "config,size,deepspeed",
    [
        (EngineConfig(), 1, False),
        (EngineConfig(), 2, True),
        (EngineConfig(zero_stage=1), 1, True),
        (EngineConfig(backend="deepspeed"), 1, True),
        (EngineConfig(backend="plain"), 1, False),
    ],
)
def test_backend(config, size, deepspeed):
    assert config.uses_deepspeed(size) is deepspeed


def test_plain_is_one_process():
    with pytest.raises(InputError, match="one process, not 2"):
        EngineConfig(backend="plain").uses_deepspeed(2)


@pytest.mark.parametrize("multiplies", [False, True])
def test_bfloat16_is_called_slow_where_it_is(multiplies, monkeypatch, caplog):
    monkeypatch.setattr(engine_config, "cpu_multiplies_bfloat16", lambda: multiplies)
    resolve_dtype("auto", CPU)
    resolve_dtype("float32", CPU)
    assert not caplog.records
    resolve_dtype("bfloat16", CPU)
    assert ["leave dtype at 'auto'" in message for message in caplog.messages] == (
        [] if multiplies else [True]
    )


def test_dtype_on_a_cpu():
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    multiplies_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags
    assert resolve_dtype("auto", CPU) == ("bfloat16" if multiplies_bfloat16 else "float32")
    assert resolve_dtype("bfloat16", CPU) == "bfloat16"
    with pytest.raises(InputError, match="float16"):
        resolve_dtype("float16", CPU)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_json(stage):
    config = EngineConfig(zero_stage=stage, max_grad_norm=0.7)
    result = deepspeed_config(config, "float32", world_size=4, accumulation=3)
    assert json.loads(json.dumps(result)) == result
    assert result["train_batch_size"] == 12
    assert result["gradient_accumulation_steps"] == 3
    assert result["zero_optimization"]["stage"] == stage
    assert result["zero_optimization"]["round_robin_gradients"] is False
    assert result["gradient_clipping"] == (0.0 if stage == 0 else 0.7)
    assert result["zero_allow_untested_optimizer"] is True
    assert result["zero_force_ds_cpu_optimizer"] is False
    assert not result.keys() & {"optimizer", "scheduler", "fp16", "bf16", "torch_autocast"}


@pytest.mark.parametrize(
    "dtype,stage,section",
    [
        ("bfloat16", 0, "torch_autocast"),
        ("bfloat16", 3, "torch_autocast"),
        ("float16", 0, "torch_autocast"),
        ("float16", 1, "fp16"),
    ],
)
def test_low_precision_section(dtype, stage, section):
    result = deepspeed_config(EngineConfig(zero_stage=stage), dtype, 2, 1)
    assert result.keys() & {"fp16", "bf16", "torch_autocast"} == {section}
    assert result[section]["enabled"] is True


def test_offload():
    config = EngineConfig(zero_stage=2, offload_optimizer=True)
    zero = deepspeed_config(config, "float32", 2, 1)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"


def test_the_json_is_derived_without_importing_deepspeed():
    program = (
        "import sys\n"
        "from distforge.training.deepspeed_config import deepspeed_config\n"
        "from distforge.training.engine_config import EngineConfig\n"
        "deepspeed_config(EngineConfig(zero_stage=3), 'bfloat16', 2, 2)\n"
        "sys.exit('deepspeed' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize(
    "card,warned", [("NVIDIA GeForce GTX 1660", True), ("NVIDIA GeForce RTX 2080", False)]
)
def test_float16_is_warned_of_where_it_gives_nan(card, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    assert resolve_dtype("float16", torch.device("cuda", 0)) == "float16"
    assert ("gives NaN" in caplog.text) is warned


def test_a_model_is_loaded_as_stored_where_each_weight_is_sharded_by_itself(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    gpu = torch.device("cuda", 0)
    assert EngineConfig(zero_stage=3, dtype="bfloat16").load_dtype(gpu) == "stored"
    assert EngineConfig(zero_stage=3, dtype="float32").load_dtype(CPU) == "stored"
    # DeepSpeed halves these itself, from float32.
    assert EngineConfig(zero_stage=3, dtype="float16").load_dtype(gpu) == "float32"
    for stage in (0, 1, 2):
        assert EngineConfig(zero_stage=stage, dtype="bfloat16").load_dtype(gpu) == "float32"
