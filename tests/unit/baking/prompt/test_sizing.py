"""How large a bake is: by model, machine and questions, and never other than what is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from distforge.baking.prompt.prompt_config import BakeTrainingConfig, PromptBakingConfig
from distforge.baking.prompt.sizing import described, sized
from distforge.errors import InputError
from distforge.optim import AdamWConfig, OptimizerConfig
from distforge.training.distributed import World
from tests.baking_cases import examples
from tests.tiny_models import tiny_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def model(hidden_size: int) -> LlamaForCausalLM:
    """No weights, only their shapes: 64 wide is 0.1M parameters, 1024 is 25M."""
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128,
                hidden_size=hidden_size,
                intermediate_size=4 * hidden_size,
                num_hidden_layers=2,
                num_attention_heads=4,
            )
        )


def tokenizer(template: bool = True) -> PreTrainedTokenizerBase:
    made = tiny_tokenizer()
    made.chat_template = TEMPLATE if template else None
    return made


def size(
    config: PromptBakingConfig | None = None,
    hidden_size: int = 1024,
    template: bool = True,
    questions: int | None = None,
    device: str = "cpu",
    ranks: int = 1,
) -> PromptBakingConfig:
    world = World(0, 0, ranks, torch.device(device))
    given = config or PromptBakingConfig()
    data = None if questions is None else examples()[:questions]
    return sized(given, model(hidden_size), tokenizer(template), world, data)


def numbers(config: PromptBakingConfig) -> tuple[int, ...]:
    training = config.training
    return (
        config.num_questions,
        config.heldout_questions,
        config.max_response_tokens,
        config.evaluate_every,
        training.max_steps,
        training.batch_size,
        training.micro_batches,
    )


@pytest.mark.parametrize(("hidden_size", "device"), [(64, "cpu"), (64, "cuda"), (1024, "cuda")])
def test_who_has_time_bakes_as_ever(hidden_size: int, device: str) -> None:
    found = size(hidden_size=hidden_size, device=device)
    assert numbers(found) == (1024, 64, 160, 25, 200, 32, 2)


def test_a_large_model_on_a_cpu_writes_and_reads_a_tenth() -> None:
    def tokens(config: PromptBakingConfig) -> int:
        rows = config.training.max_steps * config.training.batch_size
        return (rows + config.num_questions) * config.max_response_tokens

    assert 10 * tokens(size()) < tokens(size(device="cuda"))


@pytest.mark.parametrize(
    ("given", "questions"),
    [
        ({}, "everyday"),
        ({"device": "cuda"}, "self"),
        ({"questions": 100}, "dataset"),
        ({"template": False}, "dataset"),
        ({"hidden_size": 64}, "dataset"),
        ({"config": PromptBakingConfig(questions="self")}, "self"),
        ({"config": PromptBakingConfig(questions="everyday"), "questions": 100}, "everyday"),
    ],
)
def test_whose_questions(given: dict[str, Any], questions: str) -> None:
    assert size(**given).questions == questions


def test_a_large_model_takes_smaller_steps() -> None:
    rates = {width: size(hidden_size=width).optimizer.adamw.lr for width in (64, 1024)}
    assert rates == {64: 2e-3, 1024: 5e-4}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_asked_for_stays(device: str) -> None:
    training = BakeTrainingConfig(max_steps=7, batch_size=6, micro_batches=3)
    given = PromptBakingConfig(
        questions="self",
        num_questions=40,
        heldout_questions=5,
        max_response_tokens=9,
        evaluate_every=3,
        training=training,
        optimizer=OptimizerConfig(name="adamw", adamw=AdamWConfig(lr=3e-4)),
    )
    assert size(given, device=device) == given


def test_each_alone() -> None:
    usual = size()
    assert size(PromptBakingConfig(num_questions=40)) == replace(usual, num_questions=40)
    assert size(usual) == usual
    epochs = size(PromptBakingConfig(training=BakeTrainingConfig(epochs=2.0))).training
    assert (epochs.max_steps, epochs.epochs) == (0, 2.0)


def test_no_more_questions_are_answered_than_are_trained_on() -> None:
    few = PromptBakingConfig(training=BakeTrainingConfig(max_steps=3, batch_size=4))
    assert size(few).num_questions == 12
    assert size(few, hidden_size=64).num_questions == 12


def test_a_step_takes_no_more_questions_than_there_are() -> None:
    trained_on = sum(example.split == "train" for example in examples()[:6])
    assert trained_on < 6
    for device in ("cpu", "cuda"):
        assert size(questions=6, device=device).training.batch_size == trained_on


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_every_step(ranks: int) -> None:
    for device in ("cpu", "cuda"):
        assert size(device=device, ranks=ranks).training.micro_batches % ranks == 0


def test_what_does_not_go_together_is_refused() -> None:
    few = PromptBakingConfig(num_questions=3)
    with pytest.raises(InputError, match="num_questions is 3; expected at least the batch_size"):
        size(few)


def test_the_console_says_it() -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    given = PromptBakingConfig(num_questions=123, training=BakeTrainingConfig(max_steps=17))
    said = described(size(given), model(1024), world)
    for part in ("M parameters on CPU", "123 questions people ask", "17 steps"):
        assert part in said
