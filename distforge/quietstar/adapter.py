"""An adapter (LoRA) that reinforcement learning trains alone; whoever asks gets it merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distforge.baking.prompt.delta import add_adapter, lora_config
from distforge.baking.prompt.prompt_config import LoraSettings
from distforge.thinking.model import ThinkingModel
from distforge.training.engine import TrainingEngine


class Adapter:
    """Put into ``model`` on construction, in place; its first output is zero.

    Raises:
        InputError: the model has none of the target modules.
    """

    def __init__(self, model: ThinkingModel, settings: LoraSettings, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._wrapped = add_adapter(model.lm, lora_config(settings))

    def merged(self, model: nn.Module) -> ThinkingModel:
        """A copy of the model with the adapter in its weights, as it is exported and sampled."""
        # Copied together, so that the one stands in the other as it did.
        wrapped, whole = copy.deepcopy((self._wrapped, model))
        wrapped.merge_and_unload()
        assert isinstance(whole, ThinkingModel)
        return whole


class MergedSource:
    """Whole weights of an engine as of a model without an adapter; see `TrainingEngine`."""

    def __init__(self, engine: TrainingEngine, adapter: Adapter) -> None:
        self._engine, self._adapter = engine, adapter

    @property
    def takes_fewer(self) -> bool:
        """See `TrainingEngine`."""
        return self._engine.takes_fewer

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """See `TrainingEngine`."""
        with self._engine.whole_model() as model:
            yield self._adapter.merged(model)
