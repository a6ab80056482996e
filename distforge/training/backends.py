"""Two ways to compute a step: bare torch in one process, and DeepSpeed on any number of ranks.

Both take a loss that is already a sum over this rank's micro-batch divided by the targets of the
whole step over all ranks, and turn the accumulated gradients into one clipped update.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from distforge.optim import MuonGrokfast
from distforge.optim.sharding import bind_zero, load_universal
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import World, prepare_deepspeed
from distforge.training.engine_config import EngineConfig
from distforge.training.host_memory import return_freed_memory
from distforge.training.node_disks import seen_by_all
from distforge.training.shards import ShardWriter, loading_plain_data
from distforge.training.universal import convert_to_universal

_OPTIMIZER_FILE = "optimizer.pt"
_MODEL_FILE = "model.safetensors"
_DEEPSPEED_TAG = "deepspeed"


class Backend(ABC):
    """What `TrainingEngine` asks of either way."""

    forward_module: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch."""

    @abstractmethod
    def step(self) -> float:
        """Clip, update, clear the gradients; the global gradient norm before clipping.

        Raises FloatingPointError, with the weights unchanged and the gradients cleared, for a norm
        that is not finite. Under float16 such a step is skipped and the loss scale lowered instead.
        """

    @abstractmethod
    def loss_scaling(self) -> dict[str, Any]:
        """What float16's loss scale and its history are; empty for others."""

    @abstractmethod
    def restore_loss_scaling(self, state: dict[str, Any]) -> None:
        """Set what `loss_scaling` returned."""

    @abstractmethod
    def save(self, directory: Path, shards: ShardWriter) -> None:
        """Write weights and optimizer state into ``directory``, as far as it can by ``shards``;
        collective."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Read what `save` wrote, on as many ranks; collective."""

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Precision of the forward pass."""
        yield

    @contextmanager
    def whole_model(self, module: nn.Module) -> Iterator[nn.Module]:
        """A module whose weights are whole on every rank, for generating and exporting."""
        yield module


class PlainBackend(Backend):
    """One process. Low precision is autocast over fp32 weights, fp16 with loss scaling."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig, dtype: str
    ) -> None:
        self.forward_module = model
        self.optimizer = optimizer
        self._max_norm = config.max_grad_norm
        self._dtype = getattr(torch, dtype)
        self._device = next(model.parameters()).device.type
        self._scaler = torch.amp.GradScaler(self._device, enabled=dtype == "float16")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        low = self._dtype != torch.float32
        with torch.autocast(self._device, dtype=self._dtype if low else None, enabled=low):
            yield

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def step(self) -> float:
        self._scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.forward_module, self._max_norm)
        if not self._scaler.is_enabled() and not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            require_finite(norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def loss_scaling(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def restore_loss_scaling(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)

    def save(self, directory: Path, shards: ShardWriter) -> None:
        trained = _trained_alone(self.forward_module)
        if trained:
            save_file(trained, directory / _MODEL_FILE)
        else:
            save_model(self.forward_module, str(directory / _MODEL_FILE))
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        shards.save(state, directory / _OPTIMIZER_FILE)

    def load(self, directory: Path) -> None:
        saved, trained = directory / _MODEL_FILE, _trained_alone(self.forward_module)
        with safe_open(saved, framework="pt") as content:
            partial = bool(trained) and set(content.keys()) == set(trained)
        if partial:
            with torch.no_grad():
                for name, value in load_file(saved).items():
                    trained[name].copy_(value)
        else:  # all is trained, or an earlier version kept what is frozen too
            load_model(self.forward_module, str(saved))
        state = torch.load(directory / _OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


class DeepSpeedBackend(Backend):
    """DeepSpeed with our optimizer as its client, ZeRO 0 to 3."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        dtype: str,
        world: World,
        accumulation: int,
    ) -> None:
        deepspeed = started_deepspeed(world)
        self._config = config
        self._world = world
        self._dtype = dtype
        self._device = world.device
        # DeepSpeed divides by the accumulation and averages over ranks; the loss is a share of the
        # whole step's already, so undo both.
        self._undo = accumulation * world.size
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, dtype, world.size, accumulation),
            dist_init_required=False,
        )
        if isinstance(optimizer, MuonGrokfast):
            bind_zero(optimizer, self._engine)
        self.forward_module = self._engine
        self.optimizer = optimizer

    def backward(self, loss: Tensor) -> None:
        # Every micro-batch but the last leaves step() without effect, so it can follow each.
        self._engine.backward(loss * self._undo)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self) -> float:
        if not self._config.clips_itself():
            self._engine.step()
            # ZeRO leaves the weights alone when its norm is not finite.
            norm = float(self._engine.get_global_grad_norm())
            return norm if self._dtype == "float16" else require_finite(norm)
        scaler = self._engine.torch_autocast_z0_gradscaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = clip_gradients(self._engine.module, self._config.max_grad_norm)
        if scaler is None and not math.isfinite(norm):
            self._engine.zero_grad()
            self._engine.micro_steps += 1  # as step() does: it counts where a step begins
            require_finite(norm)
        self._engine.step()
        return norm

    def loss_scaling(self) -> dict[str, Any]:
        scaler = self._engine.torch_autocast_z0_gradscaler
        if scaler is not None:
            return dict(scaler.state_dict())
        own = getattr(self._engine.optimizer, "loss_scaler", None)
        return {} if own is None else dict(vars(own))

    def restore_loss_scaling(self, state: dict[str, Any]) -> None:
        scaler = self._engine.torch_autocast_z0_gradscaler
        if scaler is not None:
            scaler.load_state_dict(state)
        elif state:
            vars(self._engine.optimizer.loss_scaler).update(state)

    def save(self, directory: Path, shards: ShardWriter) -> None:
        self._engine.checkpoint_engine.save = shards.save
        if self._world.size > 1:  # DeepSpeed makes it on rank 0's disk alone
            (directory / _DEEPSPEED_TAG).mkdir(exist_ok=True)
        scaler = self._engine.torch_autocast_z0_gradscaler
        self._engine.save_checkpoint(
            str(directory),
            tag=_DEEPSPEED_TAG,
            client_state={
                # Without it, there may be no conversion to a universal checkpoint.
                "universal_checkpoint_info": {},
                **({"scaler": scaler.state_dict()} if scaler is not None else {}),
            },
            save_latest=False,
        )

    def load(self, directory: Path) -> None:
        with loading_plain_data():
            _, client_state = self._engine.load_checkpoint(str(directory), tag=_DEEPSPEED_TAG)
        if self._engine.torch_autocast_z0_gradscaler is not None:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(client_state["scaler"])

    def load_converted(self, directory: Path) -> None:
        """Read what `save` wrote on another number of ranks or at another stage of ZeRO 1 to 3."""
        world = self._world
        # Beside the checkpoint, because all ranks see it there; inside, its manifest would not fit.
        converted = directory.with_name(f"{directory.name}.universal.tmp")
        with loading_plain_data():
            if world.is_main:
                shutil.rmtree(converted, ignore_errors=True)
                source, target = directory / _DEEPSPEED_TAG, converted / _DEEPSPEED_TAG
                convert_to_universal(source, target, self._config.zero_stage)
            world.barrier()
            with seen_by_all(converted, world) as seen:
                load_universal(self.optimizer, self._engine, str(seen), _DEEPSPEED_TAG)
        world.barrier()
        if world.is_main:
            shutil.rmtree(converted)

    @contextmanager
    def whole_model(self, module: nn.Module) -> Iterator[nn.Module]:
        if self._config.zero_stage < 3:
            yield module
            return
        # A copy, not the gathered module itself: its forward hooks would shard the weights again
        # after each layer, and ranks that generate different numbers of tokens would deadlock.
        import deepspeed

        whole = type(module)(copy.deepcopy(module.config)).to(self._device)
        for name, adapter in getattr(module, "peft_config", {}).items():
            inject_adapter_in_model(adapter, whole, name)
        targets = dict(whole.named_parameters())
        for name, parameter in module.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter):
                targets[name].data = parameter.data.detach().clone()
        for name, buffer in module.named_buffers():
            whole.get_buffer(name).copy_(buffer)
        whole.tie_weights()  # type: ignore[operator]
        if hasattr(module, "generation_config"):
            whole.generation_config = module.generation_config
        yield whole


def started_deepspeed(world: World) -> Any:
    """The module, which knows its ranks."""
    prepare_deepspeed()
    import deepspeed

    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if world.device.type == "cuda" else "gloo",
            store=HashStore(),
            rank=0,
            world_size=1,
        )
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def shard_weights(
    model: nn.Module, config: EngineConfig, dtype: str, world: World, accumulation: int
) -> None:
    """Leave each rank its part of every weight, in float32, one weight after the other; collective.

    For ZeRO 3, before the engine is made, which would have the whole model on the device first.
    Rank 0's weights become everyone's.
    """
    settings = deepspeed_config(config, dtype, world.size, accumulation)
    started_deepspeed(world).zero.Init(
        module=_Widening(model), config_dict_or_path=settings, dtype=torch.float32
    )


class _Widening(nn.Module):
    """A model whose parameters become float32 as they are taken, the one after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        for parameter in self.model.parameters(recurse):
            parameter.data = parameter.data.float()
            yield parameter
            # What the whole one took would lie unused among the shards that stay.
            return_freed_memory()


def _trained_alone(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters of a model that has frozen ones too, which never change and are the
    run's input (an adapter's base); empty where all are trained."""
    parameters = dict(model.named_parameters())
    trained = {name: p.detach() for name, p in parameters.items() if p.requires_grad}
    return trained if len(trained) < len(parameters) else {}


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Clip whole gradients to the global norm ``max_norm`` (0: only measure); the norm before."""
    limit = max_norm if max_norm > 0 else float("inf")
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))


def require_finite(norm: float) -> float:
    """``norm``, or FloatingPointError when it is infinite or not a number."""
    if not math.isfinite(norm):
        raise FloatingPointError(f"the global gradient norm is {norm}")
    return norm
