"""What a torch optimizer can do, as rows of a table: torch.optim.AdamW beside MuonGrokfast.

    python -m tests.unit.optim.conformance      # prints distforge/optim/CONFORMANCE.md

Each row is a scenario that both optimizers go through; what comes out of it (rates, calls, errors)
is compared. The scenario of AdamW is the judge: a row is "equal", or the one sentence with which
MuonGrokfast refuses.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from distforge.errors import InputError
from distforge.optim import MuonGrokfast

Optimizer = torch.optim.Optimizer
Make = Callable[[nn.Module], Optimizer]
STEPS = 8


class Row(NamedTuple):
    """A capability, what AdamW does and what MuonGrokfast does, in words."""

    name: str
    adamw: str
    muon_grokfast: str


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 6))


def adamw(net: nn.Module) -> Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.99))


def muon_grokfast(net: nn.Module) -> Optimizer:
    return MuonGrokfast(net, lr=0.01, momentum=0.9, betas=(0.9, 0.99), ns_dtype="float32")


def loss_of(net: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return net(torch.randn(4, 6, generator=generator)).square().mean()


def train(net: nn.Module, optimizer: Optimizer, steps: int = 1, first: int = 0) -> None:
    for seed in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(net, seed).backward()
        optimizer.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# --- Schedulers: the rates of the first group, step by step ---


def _rates(build: Callable[[Optimizer], Any]) -> Callable[[Make], Any]:
    def scenario(make: Make) -> Any:
        net = model()
        optimizer = make(net)
        scheduler = build(optimizer)
        rates = []
        for step in range(STEPS):
            train(net, optimizer, 1, step)
            if isinstance(scheduler, schedulers.ReduceLROnPlateau):
                scheduler.step(1.0)
            else:
                scheduler.step()
            group = optimizer.param_groups[0]
            beta = group["momentum"] if "momentum" in group else group["betas"][0]
            rates.append((round(float(group["lr"]), 12), round(beta, 12)))
        alike = {float(group["lr"]) for group in optimizer.param_groups}
        assert len(alike) == 1, "every group follows the scheduler"
        return rates

    return scenario


def _sequential(optimizer: Optimizer) -> Any:
    parts = [schedulers.ConstantLR(optimizer, 0.1), schedulers.ExponentialLR(optimizer, 0.5)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[3])


def _chained(optimizer: Optimizer) -> Any:
    parts = [schedulers.ConstantLR(optimizer, 0.1), schedulers.ExponentialLR(optimizer, 0.5)]
    return schedulers.ChainedScheduler(parts, optimizer=optimizer)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.001, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
    "SWALR": lambda o: SWALR(o, swa_lr=0.001),
}


def a_rate_set_before_the_scheduler(make: Make) -> Any:
    optimizer = make(model())
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    schedulers.LambdaLR(optimizer, lambda step: 1.0)
    return [group["lr"] for group in optimizer.param_groups][:1]


def _scheduler_resumes(make: Make) -> Any:
    def made() -> tuple[Optimizer, Any]:
        optimizer = make(model())
        return optimizer, schedulers.CosineAnnealingLR(optimizer, 9)

    optimizer, scheduler = made()
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    other, resumed = made()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    other.step()
    resumed.step()
    return round(other.param_groups[0]["lr"], 12)


# --- Rates that are no Python float ---


def _rate(value: Callable[[], Any]) -> Callable[[Make], Any]:
    def scenario(make: Make) -> Any:
        net, same = model(), model()
        optimizer, reference = make(net), make(same)
        for group in optimizer.param_groups:
            group["lr"] = value()
        for group in reference.param_groups:
            group["lr"] = 0.25
        train(net, optimizer, 2)
        train(same, reference, 2)
        return torch.allclose(weights(net), weights(same), atol=1e-6)

    return scenario


# --- State ---


def _resumes(save: Callable[[Any], Any]) -> Callable[[Make], Any]:
    def scenario(make: Make) -> Any:
        net = model()
        optimizer = make(net)
        train(net, optimizer, 3)
        state, weight = save(optimizer.state_dict()), copy.deepcopy(net.state_dict())
        train(net, optimizer, 2, 3)
        other = model()
        other.load_state_dict(weight)
        resumed = make(other)
        resumed.load_state_dict(state)
        train(other, resumed, 2, 3)
        return torch.equal(weights(net), weights(other))

    return scenario


def _through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _without_a_hyperparameter(state: Any) -> Any:
    """As saved by a version that did not have it yet."""
    groups = [dict(group) for group in state["param_groups"]]
    for group in groups:
        group.pop("amsgrad", None)
        group.pop("cautious_weight_decay", None)
    return {**copy.deepcopy(state), "param_groups": groups}


def _pre_hook_returns_a_dict(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    train(net, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_pre_hook(lambda _, given: given["inner"])
    optimizer.load_state_dict({"inner": state})
    return [float(s["step"]) for s in optimizer.state.values()][:1]


def _hooks_in_order(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before the step"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after the step"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("before the state dict"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("after the state dict"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("after loading"))
    train(net, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    return seen


def _post_hook_may_change_state(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    train(net, optimizer)

    def clear(loaded: Optimizer) -> None:
        for state in loaded.state.values():
            state["exp_avg"].zero_()

    optimizer.register_load_state_dict_post_hook(clear)
    optimizer.load_state_dict(optimizer.state_dict())
    return all(not state["exp_avg"].any() for state in optimizer.state.values())


def _copied(how: Callable[[Any], Any]) -> Callable[[Make], Any]:
    def scenario(make: Make) -> Any:
        net = model()
        optimizer = make(net)
        train(net, optimizer, 2)
        other, copied = how((net, optimizer))
        train(net, optimizer, 2, 2)
        train(other, copied, 2, 2)
        return torch.equal(weights(net), weights(other))

    return scenario


# --- The step ---


def _closure(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    loss = optimizer.step(closure)  # type: ignore[arg-type]
    return calls, round(float(loss), 5)


def _grad_scaler(make: Make) -> Any:
    net, same = model(), model()
    optimizer, reference = make(net), make(same)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    found = []
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(net, step)
        scaler.scale(loss).backward()
        if step == 2:  # an overflow: the scaler drops the step
            next(net.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        before = weights(net)
        scaler.step(optimizer)
        scaler.update()
        found.append(torch.equal(before, weights(net)))
        if step != 2:
            train(same, reference, 1, step)
    return found, scaler.get_scale(), torch.allclose(weights(net), weights(same), atol=1e-5)


def _frozen_then_trained(make: Make) -> Any:
    net = model()
    net[0].requires_grad_(False)
    optimizer = make(net)
    start = net[0].weight.detach().clone()
    train(net, optimizer)
    held = torch.equal(net[0].weight, start)
    net.requires_grad_(True)
    train(net, optimizer)
    return held, torch.equal(net[0].weight, start)


def _trained_then_frozen(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    train(net, optimizer)
    optimizer.zero_grad()
    net[0].requires_grad_(False)
    start = net[0].weight.detach().clone()
    train(net, optimizer)
    return torch.equal(net[0].weight, start)


def _late_group(members: Callable[[nn.Module], Any]) -> Callable[[Make], Any]:
    def scenario(make: Make) -> Any:
        net, late = model(), nn.Linear(6, 6)
        optimizer = make(net)
        train(net, optimizer)
        named = isinstance(optimizer, MuonGrokfast)
        optimizer.add_param_group(
            {"params": members(late) if named else late.parameters(), "lr": 0.5}
        )
        before = weights(late)
        late(torch.ones(2, 6)).square().mean().backward()
        train(net, optimizer)  # zero_grad takes the late ones along
        late(torch.ones(2, 6)).square().mean().backward()
        optimizer.step()
        return torch.equal(before, weights(late)), optimizer.param_groups[-1]["lr"]

    return scenario


def _compiled(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loss_of(net).backward()
    before = weights(net)

    def update() -> None:
        optimizer.step()

    with torch._dynamo.config.patch(disable=False):  # the tests of DeepSpeed switch it off
        torch.compile(update, backend="eager")()
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    assert not isinstance(optimizer, MuonGrokfast) or breaks <= 1, f"{breaks} graph breaks"
    return not torch.equal(before, weights(net))


def _captured(make: Make) -> Any:
    """In a CUDA graph, as far as a machine without a GPU can pretend to one; AdamW's own way,
    ``capturable=True``, needs the GPU."""
    net = model()
    optimizer = make(net)
    if not isinstance(optimizer, MuonGrokfast):
        return
    loss_of(net).backward()
    before = weights(net)
    names = ("is_available", "is_current_stream_capturing")
    real = [getattr(torch.cuda, name) for name in names]
    try:
        for name in names:
            setattr(torch.cuda, name, lambda: True)
        optimizer.step()
    finally:
        for name, value in zip(names, real, strict=True):
            setattr(torch.cuda, name, value)
        assert torch.equal(before, weights(net))


def _bad_rate(make: Make) -> Any:
    net = model()
    optimizer = make(net)
    train(net, optimizer)
    optimizer.param_groups[0]["lr"] = torch.ones(2)
    train(net, optimizer)


SCENARIOS: dict[str, Callable[[Make], Any]] = {
    **{f"rates of {name}": _rates(build) for name, build in SCHEDULERS.items()},
    "a rate set before LambdaLR is made": a_rate_set_before_the_scheduler,
    "a scheduler resumed from its state": _scheduler_resumes,
    "`lr` as a tensor": _rate(lambda: torch.tensor(0.25)),
    "`lr` as a numpy number": _rate(lambda: np.float32(0.25)),
    "`lr` as an array of two": _bad_rate,
    "state dict: resumes bit by bit": _resumes(copy.deepcopy),
    "state dict: through a file, `weights_only=True`": _resumes(_through_a_file),
    "state dict: of a version with fewer hyperparameters": _resumes(_without_a_hyperparameter),
    "load_state_dict pre-hook that returns a dict": _pre_hook_returns_a_dict,
    "load_state_dict post-hook that changes state": _post_hook_may_change_state,
    "hooks of step, state dict and loading": _hooks_in_order,
    "copy.deepcopy": _copied(copy.deepcopy),
    "pickle": _copied(lambda both: pickle.loads(pickle.dumps(both))),
    "a closure": _closure,
    "GradScaler, with an overflow": _grad_scaler,
    "a parameter unfrozen during training": _frozen_then_trained,
    "a parameter frozen during training": _trained_then_frozen,
    "a late parameter group of named parameters": _late_group(lambda m: m.named_parameters()),
    "a late parameter group of a module": _late_group(lambda m: m),
    "a late parameter group without names": _late_group(lambda m: m.parameters()),
    "`torch.compile` of the step, at most one graph break": _compiled,
    "capture in a CUDA graph (AdamW with `capturable=True`)": _captured,
}


def outcome(scenario: Callable[[Make], Any], make: Make) -> Any:
    """What a scenario gives, or the error that it ends with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return scenario(make)
        except (InputError, RuntimeError, ValueError) as error:
            return error


def compare(name: str) -> Row:
    """One row; AssertionError where MuonGrokfast does something else without a word."""
    theirs, ours = (outcome(SCENARIOS[name], make) for make in (adamw, muon_grokfast))
    if isinstance(ours, InputError):
        sentence = " ".join(str(ours).split())
        does = "refuses as well" if isinstance(theirs, Exception) else "works"
        return Row(name, does, f"refuses: “{sentence}”")
    assert not isinstance(ours, Exception), f"{name}: {ours}"
    if isinstance(theirs, Exception):
        return Row(name, "refuses", "works")
    assert ours == theirs, f"{name}: AdamW gives {theirs}, MuonGrokfast {ours}"
    return Row(name, "works", "equal")


HEADER = """# What torch.optim.AdamW can do, and MuonGrokfast

Made by `python -m tests.unit.optim.conformance`, which puts both through the same scenario; a test
compares this file with it. "equal": what came out (rates, momenta, calls, bits after resuming) is
the same. A refusal is raised before anything has changed.

| | AdamW | MuonGrokfast |
|---|---|---|
"""


def table() -> str:
    """The whole table, as markdown."""
    rows = map(compare, SCENARIOS)
    return HEADER + "".join(f"| {r.name} | {r.adamw} | {r.muon_grokfast} |\n" for r in rows)


if __name__ == "__main__":
    print(table(), end="")
