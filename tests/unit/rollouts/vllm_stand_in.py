"""A ``vllm`` that samples with transformers: what `VllmEngine` calls, and nothing else of it.

It takes vLLM's own forms (settings by keyword, weights by a worker's method, a processor class,
log-probabilities by token), so that what is wired wrongly shows where vLLM is not installed; and a
head that is tied is a packed copy, which a reload leaves as it was. That vLLM itself is so is for
tests/integration/test_vllm.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int
    detokenize: bool


class LogitsProcessor:
    """To inherit from."""


class ParallelLMHead(nn.Module):
    """A head whose weights are multiplied as they were packed last."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self._weights = [model.lm_head.weight]
        self.quant_method = SimpleNamespace(
            process_weights_after_loading=lambda head: head.pack_weights()
        )
        self.pack_weights()

    def pack_weights(self) -> None:
        self.packed = self._weights[0].detach().clone()


class LLM:
    """Attributes: settings; names of the weights that came in last; prefix_resets."""

    made: list[LLM] = []  # noqa: RUF012

    def __init__(self, model: str, **settings: Any) -> None:
        described = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
        assert described["architectures"] == ["LlamaForCausalLM"]
        self.settings = settings
        self.names: list[str] = []
        self.prefix_resets = 0
        dtype = getattr(torch, settings["dtype"])
        self._model = LlamaForCausalLM(LlamaConfig.from_dict(described)).to(dtype).eval()
        self._head = ParallelLMHead(self._model)
        (processor,) = settings["logits_processors"]
        self._processor = processor(None, torch.device("cpu"), False)
        LLM.made.append(self)

    def get_model(self) -> nn.Module:
        return nn.ModuleList([self._model.model, self._head])

    def collective_rpc(self, method: Any, kwargs: dict[str, Any] | None = None) -> None:
        if callable(method):
            method(self)
            return
        assert kwargs is not None
        assert method == "reload_weights"
        weights: Iterator[tuple[str, Tensor]] = kwargs["weights_iterator"]
        came = dict(weights)
        self.names = list(came)
        missing, unexpected = self._model.load_state_dict(came, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}
        if "lm_head.weight" in came:
            self._head.pack_weights()

    def reset_prefix_cache(self) -> bool:
        self.prefix_resets += 1
        return True

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        parameters: Sequence[SamplingParams],
        use_tqdm: bool,
    ) -> list[Any]:
        pairs = zip(prompts, parameters, strict=True)
        return [self._answer(prompt["prompt_token_ids"], each) for prompt, each in pairs]

    @torch.no_grad()
    def _answer(self, ids: list[int], asked: SamplingParams) -> Any:
        assert (asked.ignore_eos, asked.logprobs, asked.detokenize) == (True, 0, False)
        generator = torch.Generator().manual_seed(asked.seed)
        tokens: list[int] = []
        scores = []
        while len(tokens) < asked.max_tokens and tokens[-1:] != asked.stop_token_ids:
            read = torch.tensor([[*ids, *tokens]])
            hidden = self._model.model(read).last_hidden_state[:, -1]
            logits = (hidden @ self._head.packed.T).float()
            logits = self._processor.apply(logits) / asked.temperature
            log_probs = logits.log_softmax(dim=-1)[0]
            token = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
            tokens.append(token)
            scores.append({token: SimpleNamespace(logprob=float(log_probs[token]))})
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=scores)])


def install(monkeypatch: pytest.MonkeyPatch, llm: type = LLM) -> None:
    """Have ``import vllm`` find the stand-in."""
    LLM.made = []
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": llm, "SamplingParams": SamplingParams},
        "vllm.model_executor": {},
        "vllm.model_executor.layers": {},
        "vllm.model_executor.layers.vocab_parallel_embedding": {"ParallelLMHead": ParallelLMHead},
        "vllm.v1": {},
        "vllm.v1.sample": {},
        "vllm.v1.sample.logits_processor": {"LogitsProcessor": LogitsProcessor},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
