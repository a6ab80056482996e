"""The vLLM engine on a stand-in for vLLM: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from distforge.errors import InputError
from distforge.rollouts import RolloutRequest, gather_weights
from distforge.rollouts.engines.sampling import Answered, Sampling, as_thoughts
from distforge.rollouts.engines.vllm_engine import VllmRecipe, policy_weights
from distforge.rollouts.weights import pack, unpack
from distforge.thinking.model import ThinkingModel
from tests.tiny_models import tiny_llama
from tests.unit.rollouts import vllm_stand_in
from tests.unit.rollouts.vllm_stand_in import LLM

VOCABULARY = 40
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
SAMPLING = Sampling(group=6, max_tokens=12, temperature=0.7, stop=1, banned=(0, 2, 39), pad=0)


class Whole:
    """A learner that is nothing but its model."""

    def __init__(self, model: ThinkingModel) -> None:
        self._model = model

    def whole_model(self) -> Any:
        return nullcontext(self._model)


def published(lm: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The weights as an actor gets them."""
    model = ThinkingModel.wrap(lm, mixing=False)
    return unpack(pack(gather_weights(Whole(model))))


def recipe(lm: LlamaForCausalLM, **changes: Any) -> VllmRecipe:
    described = json.loads(lm.config.to_json_string(use_diff=False))
    config = json.dumps({**described, "architectures": [type(lm).__name__]})
    known = {"config": config, "sampling": SAMPLING, "context": 17, "sequences": 12}
    return VllmRecipe(**{**known, **changes})


def expected(lm: LlamaForCausalLM, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Their log-probabilities, by the definition of the distribution."""
    with torch.no_grad():
        logits = lm(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
    allowed = torch.ones(VOCABULARY, dtype=torch.bool)
    allowed[list(SAMPLING.banned)] = False
    powers = (logits / SAMPLING.temperature).exp() * allowed
    chosen = powers[range(len(tokens)), tokens] / powers.sum(dim=-1)
    return chosen.log().float()


@pytest.mark.parametrize("tied", [True, False])
def test_answers_are_the_weights_own_at_the_temperature_without_what_is_banned(
    monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    vllm_stand_in.install(monkeypatch)
    engine = recipe(tiny_llama(VOCABULARY, tied=tied))()
    closed = 0
    for version in (3, 4):
        lm = tiny_llama(VOCABULARY, tied=tied, seed=version)
        engine.load(published(lm))
        result = engine.rollout(RolloutRequest(version, 77, PROMPTS))
        assert result["rows"].tolist() == [0] * 6 + [1] * 6
        assert result["positions"].tolist() == [1] * 6 + [3] * 6
        assert result["targets"].shape == (12, 0)
        assert result["rewards"].tolist() == [0.0] * 12
        for n in range(12):
            length = int(result["lengths"][n])
            tokens = result["tokens"][n, :length].tolist()
            assert not {0, 2, 39} & set(tokens)
            assert 1 not in tokens[:-1]
            assert bool(result["closed"][n]) is (tokens[-1] == 1)
            assert length == 12 or tokens[-1] == 1
            assert result["tokens"][n, length:].tolist() == [0] * (
                len(result["tokens"][n]) - length
            )
            own = expected(lm, PROMPTS[n // 6], tokens)
            torch.testing.assert_close(result["log_probs"][n, :length], own, atol=1e-4, rtol=0)
            assert not result["log_probs"][n, length:].any()
        closed += int(result["closed"].sum())
    assert 0 < closed < 24, "both ends should come"
    (llm,) = LLM.made
    assert ("lm_head.weight" in llm.names) is not tied
    assert llm.prefix_resets == 2


def test_answers_follow_from_seed_and_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_stand_in.install(monkeypatch)
    lm = tiny_llama(VOCABULARY)
    engine = recipe(lm)()
    engine.load(published(lm))
    first = engine.rollout(RolloutRequest(0, 5, PROMPTS))
    engine.rollout(RolloutRequest(1, 6, PROMPTS[:1]))
    torch.manual_seed(123)
    again, other = (engine.rollout(RolloutRequest(9, seed, PROMPTS)) for seed in (5, 6))
    assert torch.equal(first["tokens"], again["tokens"])
    assert not torch.equal(first["tokens"], other["tokens"])
    # Nor are answers of a group copies of each other.
    assert len({tuple(row) for row in first["tokens"][:6].tolist()}) > 1


def test_what_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_stand_in.install(monkeypatch)
    lm = tiny_llama(VOCABULARY)
    recipe(lm, dtype="bfloat16")()
    recipe(lm, gpus=0.5)()
    on_cpu, on_gpu = (llm.settings for llm in LLM.made)
    assert on_cpu["logprobs_mode"] == "processed_logprobs"
    assert (on_cpu["max_model_len"], on_cpu["max_num_seqs"]) == (17, 12)
    assert (on_cpu["dtype"], on_cpu["enforce_eager"]) == ("bfloat16", True)
    assert (on_gpu["dtype"], on_gpu["gpu_memory_utilization"]) == ("float32", 0.45)
    assert "enforce_eager" not in on_gpu


def test_only_the_policy_goes_in_and_tied_weights_once() -> None:
    weights = published(tiny_llama(VOCABULARY))
    assert {"lm.lm_head.weight", "lm.model.embed_tokens.weight"} <= weights.keys()
    names = [name for name, _ in policy_weights({**weights, "scorer.lm.x": torch.ones(1)})]
    assert len(names) == len(weights) - 1
    assert "model.embed_tokens.weight" in names
    assert not [name for name in names if name.startswith(("lm.", "scorer"))]


VALIDATION = """1 validation error for ModelConfig
  Value error, Model architectures ['X'] are not supported. Supported: ['A', 'B'] [type=value_error,
    For further information visit https://errors.pydantic.dev/2.12/v/value_error"""


@pytest.mark.parametrize(
    ("raised", "refused"),
    [
        (
            ValueError(VALIDATION),
            "of ['LlamaForCausalLM']: Model architectures ['X'] are not supported; set",
        ),
        (NotImplementedError("head_size 8 is unknown.\nmore"), "head_size 8 is unknown; set roll"),
        (ValueError("Available memory on node 0 is less"), ""),
        (RuntimeError("engine core died"), ""),
    ],
)
def test_a_model_that_vllm_does_not_know_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, refused: str
) -> None:
    """What may go the next time is not: the actor is started again."""

    class Failing:
        def __init__(self, **settings: Any) -> None:
            raise raised

    vllm_stand_in.install(monkeypatch, Failing)
    with pytest.raises(InputError if refused else type(raised)) as caught:
        recipe(tiny_llama(VOCABULARY))()
    assert refused in str(caught.value)
    assert isinstance(caught.value, InputError) is bool(refused)
    if refused:
        assert str(caught.value).endswith("; set rollouts.engine to 'hf'")
        assert "\n" not in str(caught.value)


def test_an_interpreter_without_vllm_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="interpreter has no vLLM; name one that has it in"):
        recipe(tiny_llama(VOCABULARY))()


def test_a_request_whose_answers_are_empty_keeps_its_form() -> None:
    result = as_thoughts([[3, 4]], [Answered([], [])] * 6, SAMPLING)
    assert result["tokens"].shape == result["log_probs"].shape == (6, 1)
    assert not result["closed"].any()
