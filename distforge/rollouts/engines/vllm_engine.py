"""The engine that answers with vLLM, in the actor's own process.

vLLM's engine core runs in the process that made it, so the weights that an actor has received go
in by a call, without a copy on disk and without a restart, and who ends the actor ends it all.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distforge import durable
from distforge.errors import InputError, first_line
from distforge.rollouts.engines.sampling import Answered, Sampling, as_thoughts
from distforge.rollouts.messages import RolloutRequest

# What vLLM and torch read when they are imported; what the user has set stands.
_VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# Some of sampling would be compiled all the same, for half a minute in every actor.
_CPU_VARIABLES = {"TORCH_COMPILE_DISABLE": "1"}
# Of a GPU's memory, where an actor has it alone.
_GPU_SHARE = 0.9
_POLICY = "lm."


@dataclass(frozen=True)
class VllmRecipe:
    """What it takes to make a `VllmEngine` in another process; pickles. Call it to make one.

    config: of the causal LM, as its ``config.json`` has it, ``architectures`` included.
    context: most tokens of a prompt and its answer.
    sequences: most answers that are written at once.
    dtype: of the weights and the computation.
    gpus: that the actor has; 0 computes on the CPU.
    """

    config: str
    sampling: Sampling
    context: int
    sequences: int
    dtype: str = "float32"
    gpus: float = 0.0

    def __call__(self) -> VllmEngine:
        return VllmEngine(self)


class VllmEngine:
    """A `RolloutEngine`: a request's payload is a list of prompts, each a list of token ids.

    Raises:
        InputError: vLLM is not installed, or does not know such a model.
    """

    def __init__(self, recipe: VllmRecipe) -> None:
        for name, value in (_VARIABLES | ({} if recipe.gpus else _CPU_VARIABLES)).items():
            os.environ.setdefault(name, value)
        self._sampling = recipe.sampling
        self._llm = _started(recipe)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the policy's weights, named as `ThinkingModel` has them."""
        named = iter(policy_weights(weights))
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        self._llm.collective_rpc(_renew_heads)

    def rollout(self, request: RolloutRequest) -> dict[str, Tensor]:
        """The answers to the request's prompts, ``group`` to each; see `as_thoughts`."""
        from vllm import SamplingParams

        sampling, prompts = self._sampling, request.payload
        asked = [ids for ids in prompts for _ in range(sampling.group)]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed(request.seed, number),
                stop_token_ids=[sampling.stop],
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
            )
            for number in range(len(asked))
        ]
        # Keys and values of other weights, or of another request: what is answered would depend on
        # what was asked before.
        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in asked], parameters, use_tqdm=False
        )
        return as_thoughts(prompts, [_answered(output) for output in outputs], sampling)


def policy_weights(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Those of the language model by its own names, each once where several names share it."""
    seen = set()
    for name, value in weights.items():
        if not name.startswith(_POLICY):
            continue
        place = (value.data_ptr(), value.shape)
        if value.numel() and place in seen:
            continue
        seen.add(place)
        yield name.removeprefix(_POLICY), value


def _renew_heads(worker: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of a matrix, and of a head that is tied to the
    embedding a reload leaves the copy as it was: only the embedding's own weights came."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _answered(output: Any) -> Answered:
    written = output.outputs[0]
    tokens = [int(token) for token in written.token_ids]
    chosen = zip(written.logprobs, tokens, strict=True)
    return Answered(tokens, [float(by_token[token].logprob) for by_token, token in chosen])


def _started(recipe: VllmRecipe) -> Any:
    """vLLM with a model of the recipe's shape; its weights come with the first version."""
    # Of what it imports, for those who write vLLM.
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        from vllm import LLM
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise InputError(
            "rollouts.engine is 'vllm', and the actors' interpreter has no vLLM; name one that has "
            "it in rollouts.python"
        ) from error
    with tempfile.TemporaryDirectory(prefix="distforge-") as folder:
        config = json.loads(recipe.config)
        durable.write_json(Path(folder, "config.json"), config)
        try:
            return LLM(model=folder, **_settings(recipe))
        except (ValueError, NotImplementedError, KeyError) as error:
            # Memory may be there the next time: a place of the fleet is started again.
            if "memory" in str(error).lower():
                raise
            raise InputError(
                f"vLLM {_version()} cannot load a model of {config['architectures']}: "
                f"{_reason(error)}; set rollouts.engine to 'hf'"
            ) from error


def _settings(recipe: VllmRecipe) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "generation_config": "vllm",
        "dtype": recipe.dtype,
        "max_model_len": recipe.context,
        "max_num_seqs": recipe.sequences,
        "logprobs_mode": "processed_logprobs",
        "logits_processors": [_banning(recipe.sampling.banned)],
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "seed": 0,
    }
    if not recipe.gpus:
        # Compiling would take longer than a small model's answers.
        return {**settings, "enforce_eager": True}
    return {**settings, "gpu_memory_utilization": _GPU_SHARE * min(1.0, recipe.gpus)}


def _banning(banned: Sequence[int]) -> type:
    """A processor of vLLM's that gives the ``banned`` tokens no probability."""
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class Banning(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self._banned = torch.tensor(banned, dtype=torch.int64, device=device)

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            """Every answer is written by the same rule."""

        def apply(self, logits: Tensor) -> Tensor:
            return logits.index_fill_(-1, self._banned, -torch.inf)

    return Banning


def _reason(error: Exception) -> str:
    """The first sentence of an error that may be pydantic's, where it stands in the second line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = first_line(error)
    if len(lines) > 1 and "validation error" in told:
        told = lines[1].removeprefix("Value error, ").partition(" [type=")[0]
    return told.partition(". ")[0].rstrip(".")


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
