"""Divergences against sums written out in float64, and the chunked form against the naive one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from distforge.baking.prompt.divergence import (
    StateTeacher,
    TopKTeacher,
    bucket,
    divergence,
    sum_divergence,
    top_ids,
)

ROWS, WIDTH, VOCAB = 37, 16, 101
# float32 rounding of sums in another order.
RELATIVE = 1e-5


def log_probs(seed: int, rows: int = ROWS, vocab: int = VOCAB, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, dim=-1)


def plain_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """One pair of outcomes at a time, by the definition."""
    pairs = zip(p.exp().tolist(), q.exp().tolist(), strict=True)
    return math.fsum(a * math.log(a / b) for a, b in pairs)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_every_beta_is_its_definition(beta: float) -> None:
    teacher, student = log_probs(0, rows=5), log_probs(1, rows=5)
    ours = divergence(teacher, student, beta)
    for row in range(5):
        p, q = teacher[row], student[row]
        if beta in (0.0, 1.0):
            expected = plain_kl(p, q) if beta == 0.0 else plain_kl(q, p)
        else:
            mixture = (beta * p.exp() + (1 - beta) * q.exp()).log()
            expected = beta * plain_kl(p, mixture) + (1 - beta) * plain_kl(q, mixture)
        assert float(ours[row]) == pytest.approx(expected, rel=1e-10)
    assert bool((ours > 0).all())


def test_zero_between_equals_and_bounded_between_strangers() -> None:
    same = log_probs(0)
    far_a = torch.tensor([[0.0, -300.0, -300.0]], dtype=torch.float64)
    far_b = torch.tensor([[-300.0, 0.0, -300.0]], dtype=torch.float64)
    for beta in (0.0, 0.3, 1.0):
        assert float(divergence(same, same, beta).abs().max()) < 1e-12
    # The Jensen-Shannon divergence of strangers is log 2 and no more; their KL has no bound.
    assert float(divergence(far_a, far_b, 0.5)) == pytest.approx(math.log(2))
    assert float(divergence(far_a, far_b, 0.0)) == pytest.approx(300)


@pytest.mark.parametrize("top_k", [1, 2, 5, 20, 100, 5000])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_buckets_are_a_distribution_and_bound_the_exact_value(top_k: int, beta: float) -> None:
    teacher, student = log_probs(2, scale=4.0), log_probs(3, scale=4.0)
    ids = top_ids(teacher, top_k)
    kept = min(top_k, VOCAB - 1)
    ours, theirs = bucket(student, ids), bucket(teacher, ids)
    assert ours.shape == (ROWS, kept + 1)
    for row in (0, ROWS - 1):
        others = [i for i in range(VOCAB) if i not in ids[row].tolist()]
        tail = math.fsum(student[row].exp()[others].tolist())
        assert float(ours[row, -1].exp()) == pytest.approx(tail, rel=1e-9)
    exact = divergence(teacher, student, beta)
    reduced = divergence(theirs, ours, beta)
    assert bool((reduced <= exact + 1e-12).all())
    if kept == VOCAB - 1:
        assert torch.allclose(reduced, exact)
    else:
        assert bool((reduced < exact).any())


def test_more_outcomes_tell_more() -> None:
    teacher, student = log_probs(4), log_probs(5)
    values = []
    for top_k in (1, 4, 16, 64):
        ids = top_ids(teacher, top_k)
        values.append(float(divergence(bucket(teacher, ids), bucket(student, ids), 0.0).sum()))
    assert values == sorted(values)


def test_a_tiny_tail_is_not_lost_to_rounding() -> None:
    """1 − Σ of float32 probabilities would give 0 or 6e-8 here, and an infinite KL."""
    row = torch.log_softmax(torch.tensor([[30.0, 0.0, 0.0, 0.0]]), dim=-1)
    tail = bucket(row, torch.tensor([[0]]))[0, -1]
    assert float(tail) == pytest.approx(math.log(3) - 30.0, rel=1e-6)


def problem(seed: int = 0, vocab: int = VOCAB) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(WIDTH, vocab)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocab, WIDTH, generator=generator))
        head.bias.copy_(torch.randn(vocab, generator=generator))
    states = torch.randn(ROWS, WIDTH, generator=generator)
    return states, head, torch.randint(vocab, (ROWS,), generator=generator)


def naive(
    states: torch.Tensor, head: nn.Linear, teacher_logits: torch.Tensor, beta: float
) -> torch.Tensor:
    """torch's own KL on whole tensors."""
    student = torch.log_softmax(head(states), dim=-1)
    teacher = torch.log_softmax(teacher_logits, dim=-1)

    def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return nn.functional.kl_div(q, p, log_target=True, reduction="sum")

    if beta == 0.0:
        return kl(teacher, student)
    if beta == 1.0:
        return kl(student, teacher)
    mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rows_a_chunk", [1, 5, ROWS, 1000])
def test_value_and_gradients_are_those_of_the_naive_form(beta: float, rows_a_chunk: int) -> None:
    states, head, token_ids = problem()
    teacher_states, teacher_head, _ = problem(1)
    gradients = []
    for chunked in (False, True):
        leaf = states.clone().requires_grad_()
        head.zero_grad()
        if chunked:
            value, hits = sum_divergence(
                leaf,
                head,
                StateTeacher(teacher_states, teacher_head),
                token_ids,
                beta=beta,
                chunk_elements=rows_a_chunk * VOCAB,
            )
            assert int(hits) == int((head(states).argmax(-1) == token_ids).sum())
        else:
            value = naive(leaf, head, teacher_head(teacher_states).detach(), beta)
        (0.37 * value).backward()
        gradients.append([leaf.grad, head.weight.grad.clone(), head.bias.grad.clone(), value])
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        assert float((ours - theirs).detach().norm()) <= RELATIVE * float(theirs.detach().norm())
    assert all(parameter.grad is None for parameter in teacher_head.parameters())


def test_a_teacher_written_down_is_the_teacher_run() -> None:
    states, head, token_ids = problem()
    teacher_states, teacher_head, _ = problem(1)
    running = StateTeacher(teacher_states, teacher_head, top_k=7)
    ids, written = running.rows(slice(None))
    assert ids is not None
    values = [
        float(sum_divergence(states, head, t, token_ids, beta=0.0, chunk_elements=900)[0].detach())
        for t in (running, TopKTeacher(ids, written))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    exact = StateTeacher(teacher_states, teacher_head)
    whole, _ = sum_divergence(states, head, exact, token_ids, beta=0.0, chunk_elements=900)
    assert values[0] < float(whole.detach())


def test_no_rows_cost_nothing() -> None:
    states, head, token_ids = problem()
    leaf = states[:0].requires_grad_()
    teacher = StateTeacher(states[:0], head)
    value, hits = sum_divergence(leaf, head, teacher, token_ids[:0], beta=0.0, chunk_elements=99)
    value.backward()
    assert (float(value.detach()), int(hits)) == (0.0, 0)


def peak_bytes(path: Path, vocab: int, tokens: int) -> int:
    """Most bytes that one loss and its backward hold beyond states, head and its gradient."""
    head = nn.Linear(WIDTH, vocab, bias=False).requires_grad_(False)
    states = torch.randn(tokens, WIDTH).requires_grad_()
    teacher = StateTeacher(torch.randn(tokens, WIDTH), head)
    token_ids = torch.zeros(tokens, dtype=torch.int64)

    def step() -> None:
        states.grad = None
        loss, _ = sum_divergence(states, head, teacher, token_ids, beta=0.0, chunk_elements=1 << 18)
        loss.backward()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    recorded.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for _, change in sorted(
        (e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"
    ):
        held += change
        peak = max(peak, held)
    return peak


def test_peak_memory_does_not_grow_with_the_vocabulary(tmp_path: Path) -> None:
    tokens = 1024
    small = peak_bytes(tmp_path / "small.json", 2_000, tokens)
    large = peak_bytes(tmp_path / "large.json", 50_000, tokens)
    assert large < 1.1 * small
    # The naive form holds at least the student's log-probabilities and their gradient.
    assert small < 2 * 4 * tokens * 50_000 / 10
