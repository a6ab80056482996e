"""A language model that thinks before it predicts: the LM, and the head that mixes thoughts in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from distforge import durable
from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError, explain_file_error, first_line
from distforge.models.loading import load_champion
from distforge.models.storage import save_weights
from distforge.models.weight_files import model_directory
from distforge.thinking.generation import ThinkingGeneration, generate
from distforge.thinking.language_model import attention_mask, head_at, implementation
from distforge.thinking.mixing import MixingHead, mix_logits
from distforge.thinking.packing import TARGET, packed_mask
from distforge.thinking.tags import Tags

HEAD_FILE = "mixing_head.safetensors"
SETTINGS_FILE = "thinking.json"


class ThinkingModelConfig(PreTrainedConfig):
    """The configuration of the language model, and whether and how a mixing head stands on it."""

    model_type = "distforge_thinking"
    sub_configs = {"lm_config": AutoConfig}  # noqa: RUF012 (read by transformers as it is)

    def __init__(
        self,
        lm_config: PreTrainedConfig | None = None,
        mixing: bool = True,
        initial_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mixing = mixing
        self.initial_weight = initial_weight
        # After super().__init__, which would set its attention implementation to None.
        self.lm_config = lm_config


@dataclass
class SlotOutput(ModelOutput):
    """Predictions at the labelled slots of a packed batch, in row-major order.

    logits: (S, V), of every slot with a label.
    base_logits: (S_t, V), for the S_t TARGET slots: what their ``base_index`` slot predicts, the
        slot's own logits where there is none. None without a mixing head.
    weight: (S_t,) float32, the thought's share of each of these predictions; 1 without a head.
    targets: (S,) boolean, which of the labelled slots are TARGET slots.
    states, base_states: (S, d) and (S_t, d), what the output head reads for ``logits`` and
        ``base_logits``, in place of these where the model was asked for states.
    """

    logits: Tensor | None = None
    base_logits: Tensor | None = None
    states: Tensor | None = None
    base_states: Tensor | None = None
    weight: Tensor | None = None
    targets: Tensor | None = None

    def mixed_logits(self) -> Tensor:
        """(S, V) float32: as ``logits``, with the targets' predictions mixed (`mix_logits`)."""
        assert self.logits is not None
        assert self.targets is not None
        if self.base_logits is None or not self.targets.any():
            return self.logits.float()
        assert self.weight is not None
        with_thought = self.logits[self.targets]
        mixed = mix_logits(self.base_logits, with_thought, self.weight)
        return self.logits.float().index_put((self.targets.nonzero()[:, 0],), mixed)


class ThinkingModel(PreTrainedModel):
    """``lm``, any causal LM of transformers, and ``mixing_head`` (None when ``mixing`` is off).

    `wrap` makes one from a language model, `from_pretrained` reads what `save_pretrained` wrote.
    ``type(model)(model.config)`` builds another one with the same parameters' names and shapes.
    """

    config_class = ThinkingModelConfig
    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: ThinkingModelConfig, lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.lm = AutoModelForCausalLM.from_config(config.lm_config) if lm is None else lm
        # transformers keeps an implementation for each configuration; here they are one.
        self.config._attn_implementation_internal = self.lm.config._attn_implementation
        head = self.lm.get_output_embeddings()
        self.mixing_head = (
            MixingHead(head.weight.shape[1], config.initial_weight) if config.mixing else None
        )
        self.all_tied_weights_keys = {
            f"lm.{key}": f"lm.{value}" for key, value in self.lm.all_tied_weights_keys.items()
        }

    @classmethod
    def wrap(
        cls, lm: PreTrainedModel, *, mixing: bool = True, initial_weight: float = 0.1
    ) -> ThinkingModel:
        """A model around ``lm``, which is used as it is, on its device and in its mode.

        Args:
            mixing: whether a mixing head weighs predictions with and without a thought; off, the
                thought's prediction is all there is (questions with answers, and the end of a
                curriculum towards plain prediction).
            initial_weight: the thought's share before training; mostly without thoughts.

        Raises:
            InputError: attention that cannot think in parallel, or a weight outside (0, 1).
        """
        implementation(lm)
        config = ThinkingModelConfig(lm.config, mixing, initial_weight)
        model = cls(config, lm)
        if model.mixing_head is not None:
            model.mixing_head.to(lm.device)
        return model.train(lm.training)

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> ThinkingModel:
        """Read a directory of `save_pretrained`; fp32, in evaluation mode, nothing unpickled.

        Raises:
            InputError: no such directory, or one without a thinking model; see `load_champion`.
        """
        if kwargs:
            raise TypeError(f"unknown arguments {sorted(kwargs)}")
        directory = model_directory(source)
        _read_settings(directory)  # before the weights are
        return cls.restore(load_champion(str(directory)).model, directory)

    @classmethod
    def restore(cls, lm: PreTrainedModel, source: str | Path) -> ThinkingModel:
        """`wrap` with what `save_pretrained` wrote beside ``lm`` in the directory ``source``.

        Raises:
            InputError: there is no thinking model in it.
        """
        settings = _read_settings(Path(source))
        model = cls.wrap(lm, mixing=settings["mixing"], initial_weight=settings["initial_weight"])
        if model.mixing_head is not None:
            path = Path(source, HEAD_FILE)
            try:
                model.mixing_head.load_state_dict(load_file(path))
            except (OSError, RuntimeError, SafetensorError) as error:
                reason = explain_file_error(error) or f"{first_line(error)}; save the model again"
                raise InputError(f"{path} is not this model's mixing head: {reason}") from error
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write ``lm`` as a plain Hugging Face directory, the head and settings beside it.

        `AutoModelForCausalLM` loads the directory as it would any other. `export_model` calls this.
        """
        save_weights(self.lm, save_directory, **kwargs)
        settings = {"mixing": self.config.mixing, "initial_weight": self.config.initial_weight}
        durable.write_json(Path(save_directory, SETTINGS_FILE), settings)
        if self.mixing_head is not None:
            state = {k: v.contiguous() for k, v in self.mixing_head.state_dict().items()}
            save_file(state, Path(save_directory, HEAD_FILE), metadata={"format": "pt"})

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        branch: Tensor,
        anchor: Tensor,
        labels: Tensor,
        kind: Tensor,
        base_index: Tensor,
        states_only: bool = False,
        **_: Any,
    ) -> SlotOutput:
        """One forward pass over a packed batch; see `pack_thoughts` for the (R, W) arguments.

        The output head runs on labelled slots, and on the base slots of targets, alone; with
        ``states_only`` on none: who asks for states has it run on some of them at a time.
        """
        labelled = labels != IGNORE_INDEX
        target = labelled & (kind == TARGET)
        bases = self._base_slots(target, base_index)
        chosen = labelled.flatten().clone()
        if self.mixing_head is not None:
            chosen[bases] = True
        with head_at(self.lm, chosen.view_as(labelled), states_only=states_only) as hidden:
            computed = self.lm(
                input_ids=input_ids,
                attention_mask=attention_mask(self.lm, packed_mask(branch, anchor)),
                position_ids=position_ids,
                use_cache=False,
            ).logits
        place = chosen.cumsum(0) - 1  # among the computed slots
        rows = hidden[0] if states_only else computed
        found, among = rows[place[labelled.flatten()]], target[labelled]
        if self.mixing_head is None:
            at_base, weight = None, torch.ones(len(bases), device=found.device)
        else:
            base, own = place[bases], place[target.flatten()]
            at_base, weight = rows[base], self.mixing_head(hidden[0][base], hidden[0][own])
        if states_only:
            return SlotOutput(weight=weight, targets=among, states=found, base_states=at_base)
        return SlotOutput(logits=found, base_logits=at_base, weight=weight, targets=among)

    def generate(
        self, prompts: Sequence[Sequence[int]], tags: Tags, max_new_tokens: int, **options: Any
    ) -> list[ThinkingGeneration]:
        """Continue every prompt, thinking on the way; see `distforge.thinking.generation`."""
        return generate(self.lm, self.mixing_head, prompts, tags, max_new_tokens, **options)

    @staticmethod
    def _base_slots(target: Tensor, base_index: Tensor) -> Tensor:
        """(S_t,) flat index of each TARGET slot's base slot, or of itself where it has none."""
        own = target.flatten().nonzero()[:, 0]
        column = base_index[target]
        row = own - own % target.shape[1]
        return torch.where(column >= 0, row + column, own)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie what the language model ties."""
        self.lm.tie_weights(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.get_output_embeddings()

    @property
    def generation_config(self) -> Any:
        """The language model's."""
        return self.lm.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self.lm.generation_config = value


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {
            "mixing": bool(settings["mixing"]),
            "initial_weight": float(settings["initial_weight"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not describe a thinking model ({type(error).__name__}: "
            f"{first_line(error)}); wrap a plain language model with ThinkingModel.wrap"
        ) from error
