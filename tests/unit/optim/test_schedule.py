import pytest
import torch

from distforge.errors import InputError
from distforge.optim import ScheduleConfig, apply_lr, lr_factor


def test_warmup_is_linear_and_its_first_step_moves():
    config = ScheduleConfig(kind="constant", warmup_steps=4)
    assert [lr_factor(config, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "kind,halfway,end", [("linear", 0.6, 0.2), ("cosine", 0.6, 0.2), ("constant", 1.0, 1.0)]
)
def test_decay_passes_its_known_points_and_stays_at_the_end(kind, halfway, end):
    config = ScheduleConfig(kind=kind, warmup_steps=10, final_fraction=0.2)
    points = [lr_factor(config, step, 110) for step in (10, 60, 110, 500)]
    assert points == pytest.approx([1.0, halfway, end, end])


def test_cosine_is_flat_at_both_ends():
    config = ScheduleConfig(kind="cosine", final_fraction=0.0)
    # (1 + cos(pi / 4)) / 2
    assert lr_factor(config, 25, 100) == pytest.approx(0.853553, abs=1e-6)
    assert lr_factor(config, 75, 100) == pytest.approx(0.146447, abs=1e-6)


def test_a_run_shorter_than_its_warmup_never_decays():
    config = ScheduleConfig(kind="linear", warmup_steps=100)
    assert [lr_factor(config, step, 2) for step in range(2)] == [0.01, 0.02]


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"kind": "step"}, "'step'; expected one of"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"final_fraction": 1.5}, r"final_fraction is 1\.5"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ScheduleConfig(**arguments)


def test_bad_positions_are_refused():
    with pytest.raises(InputError, match="step is -1"):
        lr_factor(ScheduleConfig(), -1, 10)
    with pytest.raises(InputError, match="total_steps is 0"):
        lr_factor(ScheduleConfig(), 0, 0)


def test_apply_lr_scales_every_group_from_its_start():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [
        {"params": [p], "lr": lr, "initial_lr": lr}
        for p, lr in zip(params, (0.1, 4.0), strict=True)
    ]
    optimizer = torch.optim.SGD(groups)
    apply_lr(optimizer, 0.5)
    apply_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 1.0]


def test_apply_lr_needs_the_initial_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(InputError, match="group 0 has no initial_lr"):
        apply_lr(optimizer, 0.5)
