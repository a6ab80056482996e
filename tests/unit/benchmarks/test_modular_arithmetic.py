"""The tables, the model and the measure of bench_grokking, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from modular_arithmetic import (
    OneLayerTransformer,
    Setting,
    Task,
    first_step,
    is_decided,
    sustained_step,
    train,
)
from torch import nn

SHORT = Setting(limit=200, window=50, threshold=0.95, evaluate_every=25)


def table_of(task: Task) -> dict[tuple[int, int], int]:
    equations, answers = task.table()
    return {(int(e[0]), int(e[2])): int(c) for e, c in zip(equations, answers, strict=True)}


def test_tables_by_hand() -> None:
    # Inverses mod 5: 1, 3, 2, 4.
    division, multiplication = table_of(Task("division", 5)), table_of(Task("multiplication", 5))
    assert len(division) == len(multiplication) == 5 * 4
    assert [division[1, b] for b in (1, 2, 3, 4)] == [1, 3, 2, 4]
    assert [division[3, b] for b in (1, 2, 3, 4)] == [3, 4, 1, 2]
    assert [multiplication[3, b] for b in (1, 2, 3, 4)] == [3, 1, 4, 2]
    assert {division[0, b] for b in (1, 2, 3, 4)} == {0}


def test_quotients_multiplied_back_give_the_dividend() -> None:
    table = table_of(Task("division", 61))
    assert len(table) == 61 * 60
    assert all(answer * b % 61 == a for (a, b), answer in table.items())


def test_operation_and_equality_have_tokens_of_their_own() -> None:
    equations, _ = Task("division", 7).table()
    assert equations[:, 1].unique().tolist() == [7]
    assert equations[:, 3].unique().tolist() == [8]
    assert Task("division", 7).name == "division mod 7"


@pytest.mark.parametrize("modulus", [-3, 1, 2, 9, 91])
def test_a_modulus_that_is_no_odd_prime_is_refused(modulus: int) -> None:
    with pytest.raises(ValueError, match=f"modulus = {modulus} is not a prime"):
        Task("division", modulus)


def test_limit_and_window_must_be_measured() -> None:
    with pytest.raises(ValueError, match="window = 60 should be a multiple of evaluate_every = 25"):
        Setting(limit=200, window=60, evaluate_every=25)


@pytest.mark.parametrize(
    "percent,first,sustained,decided",
    [
        ([], None, None, False),
        ([10, 96, 97, 98], 50, 50, True),  # steps 50, 75 and 100: the window of 50 is over
        ([10, 96, 97], 50, None, False),
        ([10, 95, 94, 95, 95, 95], 50, 100, True),  # the first touch did not hold
        ([96, 96, 90] * 3, 25, None, True),  # step 225 is past the limit and below
        ([96, 96, 90, 96, 96, 90, 96, 96], 25, None, False),  # may hold from step 175
        ([10] * 7 + [96] * 3, 200, 200, True),  # from the limit itself, seen until step 250
        ([10] * 7 + [96, 96, 10], 200, None, True),  # fell after the limit
        ([10] * 8, None, None, True),
        ([10] * 8 + [96] * 3, 225, None, True),  # begins after the limit: too late
    ],
)
def test_the_step_from_which_accuracy_holds(
    percent: list[int], first: int | None, sustained: int | None, decided: bool
) -> None:
    curve = [value / 100 for value in percent]
    assert first_step(curve, SHORT) == first
    assert sustained_step(curve, SHORT) == sustained
    assert is_decided(curve, SHORT) == decided


def test_reading_the_last_position_alone_changes_nothing() -> None:
    torch.manual_seed(0)
    model = OneLayerTransformer(num_answers=7, width=16, num_heads=4).double()
    tokens = torch.randint(0, 9, (5, 4))
    stream = model.embed(tokens) + model.position_embed.weight
    seen = F.layer_norm(
        stream, (16,), model.attention_norm.weight, model.attention_norm.bias, eps=1e-5
    )
    heads = [
        projection(seen).view(5, 4, 4, 4).transpose(1, 2)
        for projection in (model.q_proj, model.k_proj, model.v_proj)
    ]
    mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
    stream = stream + model.o_proj(mixed.transpose(1, 2).reshape(5, 4, 16))
    stream = stream + model.down_proj(model.up_proj(model.mlp_norm(stream)).relu())
    expected = model.head(model.final_norm(stream))[:, -1]
    torch.testing.assert_close(model(tokens), expected, rtol=1e-12, atol=1e-12)


def test_a_seed_decides_weights_split_and_batches() -> None:
    setting = Setting(width=8, num_heads=2, batch_size=16, limit=50, window=25, evaluate_every=25)
    starts: list[list[torch.Tensor]] = []

    def descend(lr: float, seed: int) -> list[float]:
        def make(model: nn.Module) -> torch.optim.Optimizer:
            starts.append([p.detach().clone() for p in model.parameters()])
            return torch.optim.SGD(model.parameters(), lr=lr)

        return train(Task("multiplication", 11), setting, make, seed)

    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    curves = [descend(0.5, 0), descend(0.5, 0), descend(0.1, 0), descend(0.5, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert curves[0] == curves[1]
    assert curves[0] != curves[3]
    assert all(map(torch.equal, starts[0], starts[2]))
    assert not all(map(torch.equal, starts[0], starts[3]))
    assert all(0 <= accuracy <= 1 and math.isfinite(accuracy) for accuracy in curves[0])


def test_accuracy_is_of_equations_that_were_never_trained_on() -> None:
    # Answers of 0 / b = 0 alone would be easy; a table learnt by heart must stay near chance.
    setting = Setting(width=32, num_heads=2, batch_size=0, limit=200, window=25, evaluate_every=25)
    seen: list[nn.Module] = []

    def make(model: nn.Module) -> torch.optim.Optimizer:
        seen.append(model)
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    task = Task("division", 23)
    curve = train(task, setting, make, seed=0)
    equations, answers = task.table()
    with torch.no_grad():
        right = (seen[0](equations).argmax(-1) == answers).double()
    # Half of the table is learnt, so the accuracy of the whole is half of 1 and half of held-out.
    assert right.mean().item() == pytest.approx((1 + curve[-1]) / 2, abs=2e-3)
    assert curve[-1] < 0.5
