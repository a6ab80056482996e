"""The loss against an enumeration: one response token at a time, over plain forward passes."""

from __future__ import annotations

import math

import pytest
import torch

from distforge.baking.prompt.delta import add_adapter, lora_config
from distforge.baking.prompt.distillation import (
    TOP_IDS,
    TOP_LOG_PROBS,
    DistillationLoss,
    adapters_off,
    logits_are_linear,
    response_ids,
)
from distforge.baking.prompt.prompt_config import LoraSettings
from distforge.baking.prompt.teacher_cache import join_targets, write_down_teacher
from distforge.baking.prompt.trajectories import Trajectory, collate_trajectories
from tests.baking_cases import MODELS, model

PAD = 0
# Sums in float32 in another order; measured 3e-7.
RELATIVE = 1e-5

# Contexts and responses of uneven lengths: padding on both sides of every comparison.
ROWS = [
    Trajectory((5, 9, 13, 40, 41), (40, 41), (50, 51, 1)),
    Trajectory((5, 9, 13, 42), (42,), (52,)),
    Trajectory((5, 9, 13, 43, 44, 45, 46), (43, 44, 45, 46), (53, 54, 55, 56, 57, 1)),
]


def with_adapter(family: str, spread: float = 0.05):
    """A model whose adapter changes its output."""
    student = model(family)
    add_adapter(student, lora_config(LoraSettings(rank=4, alpha=8.0)))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in student.named_parameters():
        if ".lora_" in name:
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return student


def next_log_probs(reader, ids) -> torch.Tensor:
    """Of the token after ``ids``: one row, no padding, no cache."""
    logits = reader(input_ids=torch.tensor([ids]), use_cache=False).logits
    return torch.log_softmax(logits[0, -1].double(), dim=-1)


@torch.no_grad()
def enumerated(student, teacher=None) -> list[float]:
    """KL at every response token of every row, the first included."""
    values = []
    for row in ROWS:
        for count in range(len(row.response)):
            told = row.response[:count]
            if teacher is None:
                with adapters_off(student):
                    p = next_log_probs(student, row.prompted + told)
            else:
                p = next_log_probs(teacher, row.prompted + told)
            q = next_log_probs(student, row.plain + told)
            values.append(float((p.exp() * (p - q)).sum()))
    return values


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("chunk_elements", [1 << 22, 1000])
def test_loss_is_the_sum_over_every_response_token(family: str, chunk_elements: int) -> None:
    student = with_adapter(family).eval()
    expected = enumerated(student)
    assert len(expected) == 10
    loss = DistillationLoss(None, states=True, chunk_elements=chunk_elements)
    value, _ = loss(student, collate_trajectories(ROWS, PAD))
    assert float(value.detach()) == pytest.approx(math.fsum(expected), rel=RELATIVE)
    # Leaving out the first response token of each row would be seen.
    firsts = [expected[0], expected[3], expected[4]]
    assert sum(firsts) > 100 * RELATIVE * sum(expected)


@pytest.mark.parametrize("family", MODELS)
def test_a_fresh_adapter_is_the_teacher_without_its_prompt(family: str) -> None:
    """The teacher is the same weights, yet not the same distribution: KL > 0 before any step."""
    student = model(family)
    add_adapter(student, lora_config(LoraSettings()))
    value, _ = DistillationLoss(None, states=True)(student, collate_trajectories(ROWS, PAD))
    expected = enumerated(student)
    assert min(expected) > 0
    assert float(value.detach()) == pytest.approx(math.fsum(expected), rel=RELATIVE)
    alike = [Trajectory(row.plain, row.plain, row.response) for row in ROWS]
    nothing, _ = DistillationLoss(None, states=True)(student, collate_trajectories(alike, PAD))
    assert float(nothing.detach()) == pytest.approx(0.0, abs=1e-5)


def test_a_teacher_of_its_own_weights() -> None:
    """Full fine-tuning: the teacher is another model, not the student with something off."""
    student, teacher = model(), MODELS["llama"](320, seed=8, max_positions=256)
    value, _ = DistillationLoss(teacher, states=True)(student, collate_trajectories(ROWS, PAD))
    expected = math.fsum(enumerated(student, teacher))
    assert float(value.detach()) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("family", MODELS)
def test_gradient_is_autograds_on_whole_logits(family: str) -> None:
    """Against B×T×V logits of both models, masked and summed by torch's own kl_div."""
    batch = collate_trajectories(ROWS, PAD)
    gradients = []
    for naive in (False, True):
        student = with_adapter(family).eval()
        if naive:
            with torch.no_grad(), adapters_off(student):
                logits = student(
                    input_ids=batch["teacher_input_ids"],
                    attention_mask=batch["teacher_attention_mask"],
                ).logits
            p = torch.log_softmax(logits[:, :-1], -1)[batch["teacher_labels"][:, 1:] != -100]
            logits = student(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            q = torch.log_softmax(logits[:, :-1], -1)[batch["labels"][:, 1:] != -100]
            value = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
        else:
            value, _ = DistillationLoss(None, states=True, chunk_elements=700)(student, batch)
        value.backward()
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    assert all(".lora_" in name for name in ours)
    gap = math.sqrt(sum(float((ours[n] - theirs[n]).square().sum()) for n in ours))
    size = math.sqrt(sum(float(theirs[n].square().sum()) for n in ours))
    assert gap <= 1e-5 * size


def test_whole_logits_give_the_same_loss_as_states() -> None:
    student = with_adapter("llama").eval()
    batch = collate_trajectories(ROWS, PAD)
    values = [
        float(DistillationLoss(None, states=states)(student, batch)[0].detach())
        for states in (True, False)
    ]
    assert values[0] == pytest.approx(values[1], rel=RELATIVE)


def test_a_model_that_changes_its_logits_is_found_out() -> None:
    plain, capped = model(), model()
    assert logits_are_linear(plain)
    head = capped.get_output_embeddings()
    forward = type(capped).forward

    def soft_capped(*args, **kwargs):
        output = forward(capped, *args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    capped.forward = soft_capped
    soft_capped.__signature__ = __import__("inspect").signature(forward)
    assert head is not None
    assert not logits_are_linear(capped)


def test_dropout_is_off_in_the_teacher_alone() -> None:
    student = with_adapter("gpt2").train()
    loss = DistillationLoss(None, states=True)
    batch = collate_trajectories(ROWS, PAD)
    torch.manual_seed(0)
    first = float(loss(student, batch)[0].detach())
    second = float(loss(student, batch)[0].detach())
    assert first != second  # the student drops out
    assert student.training
    with torch.no_grad():
        teacher = [
            loss.run_teacher(student, batch, response_ids(batch["labels"])) for _ in range(2)
        ]
    assert torch.equal(teacher[0].states, teacher[1].states)


def test_different_responses_are_refused() -> None:
    batch = collate_trajectories(ROWS, PAD)
    batch["teacher_labels"] = batch["teacher_labels"].clone()
    batch["teacher_labels"][batch["teacher_labels"] == 50] = 60
    with pytest.raises(ValueError, match="same response tokens"):
        DistillationLoss(None, states=True)(with_adapter("llama"), batch)


def test_a_teacher_written_down_needs_no_teacher_model() -> None:
    student = with_adapter("llama").eval()
    batch = collate_trajectories(ROWS, PAD)
    loss = DistillationLoss(None, states=True, top_k=6)
    running, _ = loss(student, batch)
    ids, log_probs = loss.run_teacher(student, batch, response_ids(batch["labels"])).rows(
        slice(None)
    )
    kept = {k: v for k, v in batch.items() if not k.startswith("teacher_")}
    written, _ = loss(student, {**kept, TOP_IDS: ids, TOP_LOG_PROBS: log_probs})
    exact, _ = DistillationLoss(None, states=True)(student, batch)
    assert float(written.detach()) == pytest.approx(float(running.detach()), rel=1e-6)
    assert float(written.detach()) < float(exact.detach())


@pytest.mark.parametrize("top_k", [0, 6])
@pytest.mark.parametrize("own_teacher", [False, True])
def test_the_cache_gives_the_same_loss_in_any_order(top_k: int, own_teacher: bool) -> None:
    student = with_adapter("llama").eval()
    teacher = MODELS["llama"](320, seed=8, max_positions=128) if own_teacher else None
    loss = DistillationLoss(teacher, states=True, top_k=top_k, chunk_elements=1000)
    cached = write_down_teacher(student, loss, ROWS, torch.device("cpu"), PAD)
    assert cached is not None
    order = (2, 0, 1)
    batch = collate_trajectories([ROWS[i] for i in order], PAD)
    kept = {k: v for k, v in batch.items() if not k.startswith("teacher_")}
    targets = join_targets([cached[i] for i in order])
    values = [float(loss(student, b)[0].detach()) for b in (batch, {**kept, **targets})]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    if not own_teacher and not top_k:
        assert values[1] == pytest.approx(math.fsum(enumerated(student)), rel=RELATIVE)


def test_whole_logits_are_not_cached() -> None:
    loss = DistillationLoss(None, states=False)
    student = with_adapter("llama")
    assert write_down_teacher(student, loss, ROWS, torch.device("cpu"), PAD) is None


def test_an_adapter_on_the_head_is_the_students_alone() -> None:
    student = MODELS["llama"](320, tied=False, max_positions=128)
    settings = LoraSettings(rank=4, alpha=8.0, target_modules=("lm_head", "q_proj"))
    add_adapter(student, lora_config(settings))
    for name, parameter in student.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(3)
            )
    student.eval()
    value, _ = DistillationLoss(None, states=True)(student, collate_trajectories(ROWS, PAD))
    assert float(value.detach()) == pytest.approx(math.fsum(enumerated(student)), rel=RELATIVE)


def test_hits_count_the_students_argmax() -> None:
    student = with_adapter("llama").eval()
    with torch.no_grad():
        best = int(next_log_probs(student, (40, 41)).argmax())
    rows = [Trajectory((5, 40, 41), (40, 41), (best,)), Trajectory((5, 7), (7,), (best + 1,))]
    batch = collate_trajectories(rows[:1], PAD)
    _, hits = DistillationLoss(None, states=True)(student, batch)
    assert int(hits) == 1
