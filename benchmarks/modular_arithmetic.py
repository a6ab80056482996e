"""Modular arithmetic, the setting in which grokking was found: tasks, model, one training run.

Power et al. 2022, "Grokking: generalization beyond overfitting on small algorithmic datasets": a
small transformer reads the equation "a o b =" and predicts the result. It learns the training half
of the table by heart in tens of steps and the other half, if at all, long after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operation = Literal["division", "multiplication"]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """The table of a o b mod ``modulus``, for 0 <= a < modulus and 1 <= b < modulus.

    Division is a times the inverse of b, so the modulus is a prime. Raises ValueError otherwise.
    """

    operation: Operation
    modulus: int

    def __post_init__(self) -> None:
        if self.modulus < 3 or any(self.modulus % k == 0 for k in range(2, self.modulus)):
            raise ValueError(f"modulus = {self.modulus} is not a prime: give an odd prime.")

    @property
    def name(self) -> str:
        return f"{self.operation} mod {self.modulus}"

    def table(self) -> tuple[Tensor, Tensor]:
        """Equations (N, 4) as token ids and answers (N,), N = p (p - 1), ordered by a, then b.

        Numbers are their own ids, the operation is p, the sign of equality p + 1.
        """
        p = self.modulus
        pairs = [(a, b) for a in range(p) for b in range(1, p)]
        equations = torch.tensor([(a, p, b, p + 1) for a, b in pairs])
        right = [pow(b, -1, p) if self.operation == "division" else b for _, b in pairs]
        answers = [a * factor % p for (a, _), factor in zip(pairs, right, strict=True)]
        return equations, torch.tensor(answers)


@dataclass(frozen=True)
class Setting:
    """How a task is trained and when it counts as learnt.

    width: of the residual stream; num_heads divides it.
    batch_size: equations a step; 0 is the whole training half.
    limit: last step from which accuracy may begin to hold; a run that is later is censored.
    threshold, window: held-out accuracy, and for how many steps it has to hold.
    evaluate_every: steps between two measurements, a divisor of limit and window.
    """

    width: int = 64
    num_heads: int = 4
    batch_size: int = 512
    limit: int = 4000
    threshold: float = 0.95
    window: int = 300
    evaluate_every: int = 10
    train_fraction: float = 0.5
    warmup: int = 10

    def __post_init__(self) -> None:
        for name in ("limit", "window"):
            if getattr(self, name) % self.evaluate_every:
                raise ValueError(
                    f"{name} = {getattr(self, name)} should be a multiple of evaluate_every = "
                    f"{self.evaluate_every}"
                )


class OneLayerTransformer(nn.Module):
    """A pre-norm block of attention and a ReLU feed-forward, read at the last position.

    With one layer the work is small: keys and values are computed once for each token at each
    position, not for each equation, and of the rest only what the last position needs. Input (B,
    ``length``) token ids, output (B, ``num_answers``) logits.
    """

    def __init__(self, num_answers: int, width: int, num_heads: int, length: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embed = nn.Embedding(num_answers + 2, width)
        self.position_embed = nn.Embedding(length, width)
        self.attention_norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 4 * width)
        self.down_proj = nn.Linear(4 * width, width)
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_answers, bias=False)
        for table in (self.embed, self.position_embed):
            nn.init.normal_(table.weight, std=1 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        # (T, V, width): what stands before attention depends on position and token alone.
        stream = self.embed.weight + self.position_embed.weight[:, None]
        seen = self.attention_norm(stream)
        keys_values = torch.cat([self.k_proj(seen), self.v_proj(seen)], dim=-1).flatten(0, 1)
        positions = torch.arange(tokens.shape[1]) * stream.shape[1]
        heads = (2, self.num_heads, -1)
        k, v = F.embedding(tokens + positions, keys_values).unflatten(-1, heads).unbind(2)
        q = F.embedding(tokens[:, -1:], self.q_proj(seen[-1])).unflatten(-1, heads[1:])
        # (B, T, H)
        weights = ((q * k).sum(-1) / math.sqrt(q.shape[-1])).softmax(dim=1)
        last = F.embedding(tokens[:, -1], stream[-1])
        last = last + self.o_proj((weights[..., None] * v).sum(1).flatten(1))
        last = last + self.down_proj(F.relu(self.up_proj(self.mlp_norm(last))))
        return self.head(self.final_norm(last))


def train(task: Task, setting: Setting, make_optimizer: MakeOptimizer, seed: int) -> list[float]:
    """Held-out accuracy after every ``evaluate_every`` steps, until `is_decided`.

    The seed decides split, initial weights and order of the batches, so that two optimizers under
    one seed start from the same model on the same data. The learning rate rises linearly over
    ``warmup`` steps and stays.
    """
    equations, answers = task.table()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(answers), generator=generator)
    training, heldout = order.split_with_sizes(_sizes(len(order), setting.train_fraction))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OneLayerTransformer(task.modulus, setting.width, setting.num_heads)
    optimizer = make_optimizer(model)
    base = [group["lr"] for group in optimizer.param_groups]
    batches = _batches(training, setting.batch_size or len(training), generator)
    curve: list[float] = []
    step = 0
    while not is_decided(curve, setting):
        step += 1
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * min(1.0, step / setting.warmup)
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(equations[batch]), answers[batch]).backward()
        optimizer.step()
        if step % setting.evaluate_every == 0:
            with torch.no_grad():
                right = model(equations[heldout]).argmax(-1) == answers[heldout]
            curve.append(right.double().mean().item())
    return curve


def _sizes(count: int, fraction: float) -> list[int]:
    first = int(count * fraction)
    return [first, count - first]


def _batches(indices: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of ``size``; each pass is in a new order and drops its remainder."""
    if size >= len(indices):
        while True:
            yield indices
    while True:
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        for start in range(0, len(indices) - size + 1, size):
            yield shuffled[start : start + size]


def sustained_step(curve: Sequence[float], setting: Setting) -> int | None:
    """First measured step s <= limit such that accuracy is at the threshold from s to s + window.

    ``curve[i]`` is the accuracy at step (i + 1) evaluate_every. None where there is no such step,
    or where the curve ends before the window does.
    """
    length = setting.window // setting.evaluate_every + 1
    last = setting.limit // setting.evaluate_every
    for start in range(min(last, len(curve) - length + 1)):
        if all(accuracy >= setting.threshold for accuracy in curve[start : start + length]):
            return (start + 1) * setting.evaluate_every
    return None


def first_step(curve: Sequence[float], setting: Setting) -> int | None:
    """First measured step at the threshold, held or not; None where there is none."""
    hits = (i for i, accuracy in enumerate(curve) if accuracy >= setting.threshold)
    return next(((i + 1) * setting.evaluate_every for i in hits), None)


def is_decided(curve: Sequence[float], setting: Setting) -> bool:
    """Whether more training could not change `sustained_step`."""
    if sustained_step(curve, setting) is not None:
        return True
    # Past the limit, only a stretch that began before it can still become the answer.
    since_limit = curve[setting.limit // setting.evaluate_every - 1 :]
    return any(accuracy < setting.threshold for accuracy in since_limit)
