"""Other people's models: each family trains, answers, bakes a prompt and comes back as it was."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distforge.baking import PromptBaker
from distforge.evaluation.generation import generate
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.optim import MuonGrokfastConfig, OptimizerConfig, build_optimizer, split_parameters
from distforge.training import engine as engine_module
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig
from distforge.training.memory import shape_of
from tests.baking_cases import PROMPT, config, examples
from tests.tiny_families import FAMILIES, tiny_family
from tests.tiny_models import LINES, tiny_tokenizer
from tests.training_cases import collate

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
TOKENIZER = tiny_tokenizer()
ROWS = len(TOKENIZER)
INPUT = torch.tensor([TOKENIZER.encode(LINES[0])])
# Falcon asks no attention interface, Mamba has no attention.
WITHOUT_CLIP = {"falcon", "mamba"}
# What AdamW trains beside embeddings, heads and vectors.
BESIDES = {
    "mamba": {"A_log", "conv1d.weight"},
    "mixtral": {"mlp.gate.weight"},
    "qwen2_moe": {"mlp.gate.weight"},
}


def training_batch() -> dict[str, torch.Tensor]:
    rows = [torch.tensor([*TOKENIZER.encode(line), TOKENIZER.eos_token_id]) for line in LINES]
    return collate([(row, 5) for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_step_1_by_default_settings_brings_the_loss_down(family: str, caplog) -> None:
    engine_module._say_unclipped.cache_clear()
    optimizer = OptimizerConfig(
        muon_grokfast=MuonGrokfastConfig.baking().replace(
            muon_lr=0.02, adamw_lr=3e-3, qk_clip_threshold=1.0
        )
    )
    model = tiny_family(family, ROWS)
    with caplog.at_level(logging.WARNING):
        engine = TrainingEngine(
            model,
            lambda module: build_optimizer(module, optimizer),
            EngineConfig(dtype="float32", qk_clip_every=2),
            WORLD,
            1,
        )
        batch = training_batch()
        targets = int((batch["labels"][:, 1:] != -100).sum())
        steps = [engine.train_step([batch], 1.0, targets) for _ in range(8)]
    assert steps[-1].loss < 0.8 * steps[0].loss
    said = [r.getMessage() for r in caplog.records if "without QK-Clip" in r.getMessage()]
    assert len(said) == (family in WITHOUT_CLIP)
    assert any(step.clipped_heads for step in steps) == (family not in WITHOUT_CLIP)


@pytest.mark.parametrize("family", FAMILIES)
def test_muon_has_the_hidden_matrices_and_adamw_the_rest(family: str) -> None:
    model = tiny_family(family, ROWS)
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    groups = split_parameters(model, MuonGrokfastConfig.baking())
    adamw = {
        name
        for group in groups
        for name, param in group["params"]
        if group["algorithm"] == "adamw"
        and id(param) not in tables
        and sum(size > 1 for size in param.shape) > 1
    }
    known = ("wpe.weight", "position_embedding.weight", *BESIDES.get(family, ()))
    assert {name for name in adamw if not name.endswith(known)} == set()
    for end in BESIDES.get(family, ()):
        assert any(name.endswith(end) for name in adamw)
    muon = {name for g in groups if g["algorithm"] == "muon" for name, _ in g["params"]}
    assert muon


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(family: str) -> None:
    model = tiny_family(family, ROWS)
    prompts = [line[:size] for line, size in zip(LINES, (20, 28, 35), strict=True)]
    encoded = [TOKENIZER.encode(prompt) for prompt in prompts]
    ours = generate(model, TOKENIZER, encoded, 8, batch_size=3)
    for prompt, found in zip(encoded, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        written = theirs[0, ids.shape[1] :].tolist()
        end = written.index(1) if 1 in written else len(written)
        assert list(found.token_ids) == written[:end]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_champion_in_16_bit_is_exported_in_16_bit(family: str, tmp_path: Path) -> None:
    export_model(tiny_family(family, ROWS).bfloat16(), TOKENIZER, tmp_path / "given")
    champion = load_champion(str(tmp_path / "given"))
    assert champion.model.dtype == torch.float32
    with torch.no_grad():
        for parameter in champion.model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    export_model(champion.model, TOKENIZER, tmp_path / "out")
    assert champion.model.dtype == torch.float32

    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.dtype == torch.bfloat16
    # bfloat16 holds 8 bits of a weight.
    for name, parameter in champion.model.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter.to(torch.bfloat16)), name
    with torch.no_grad():
        for parameter in champion.model.parameters():
            parameter.copy_(parameter.bfloat16())
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(whole(INPUT).logits, champion.model(INPUT).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_baked_and_measured_as_it_is_exported(family: str, tmp_path: Path) -> None:
    export_model(tiny_family(family, ROWS).bfloat16(), TOKENIZER, tmp_path / "given")
    champion = load_champion(str(tmp_path / "given"))
    baker = PromptBaker(
        champion.model, TOKENIZER, config=config(evaluate_every=5), examples=examples()
    )
    baked = baker.bake(PROMPT)
    assert baked.outcome.kl_after < 0.8 * baked.outcome.kl_before
    export_model(baked.model, TOKENIZER, tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(back.eval()(INPUT).logits, baked.model.eval()(INPUT).logits)


@pytest.mark.parametrize(
    "family,expected",
    [
        ("llama", (64, 32, 16)),
        ("gpt2", (128, 32, 32)),
        ("gemma", (64, 64, 32)),
        ("mixtral", (128, 32, 16)),
        ("qwen2_moe", (64, 32, 16)),
        ("mamba", (64, 0, 0)),
    ],
)
def test_shapes_that_memory_is_estimated_from(family: str, expected: tuple[int, int, int]) -> None:
    shape = shape_of(tiny_family(family, ROWS).config)
    sizes = ("intermediate_size", "attention_size", "kv_size")
    assert tuple(shape[name] for name in sizes) == expected
    assert (shape["hidden_size"], shape["num_layers"]) == (32, 2)
