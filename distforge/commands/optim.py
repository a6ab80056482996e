"""``distforge optim explain``: which parameter is trained how, and why, before anything trains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from distforge.baking.config import Step1Config
from distforge.models.skeleton import load_skeleton
from distforge.optim.build import OptimizerConfig
from distforge.optim.config import MuonGrokfastConfig
from distforge.optim.layout import as_matrices
from distforge.optim.roles import AssignedParameter, Role, assign_roles

_FLOAT32 = 4
_PIPE_COLUMNS = 200
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "optim explain": (
        "model",
        "champion.path",
        "optimizer.name",
        "optimizer.muon_grokfast.muon_patterns",
        "optimizer.muon_grokfast.adamw_patterns",
        "optimizer.muon_grokfast.muon_lr",
        "optimizer.muon_grokfast.adamw_lr",
        "optimizer.muon_grokfast.weight_decay",
        "optimizer.muon_grokfast.split_heads",
        "optimizer.muon_grokfast.scale",
        "optimizer.muon_grokfast.grokfast_lambda",
        "optimizer.muon_grokfast.grokfast_on_adamw",
    )
}


@dataclass(frozen=True)
class ExplainConfig(Step1Config):
    """Show which parameters Muon trains and which AdamW, with the rule that decided.

    Takes a run's configuration, of which optimizer.* is read; optimizer.muon_grokfast.muon_patterns
    and adamw_patterns overrule the rules.

    model: a directory, a config.json, a champion file or ``hf://NAME``; weights are not read, so
        the size does not matter. Without it, the configuration's champion.path.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL"), tyro.conf.Positional] = ""


@dataclass(frozen=True)
class ParameterRow:
    """Parameters that share everything but a layer's index.

    pattern: their name with each index as ``*``, or the one name there is.
    aliases: other names of the same weights (tied), as patterns.
    matrices: (batch, m, n) that Muon orthogonalises of each; None for AdamW.
    weight_decay: as the optimizer applies it.
    elements, state_bytes: of all ``count`` together; state is float32 momentum, moments and EMA.
    """

    pattern: str
    aliases: tuple[str, ...]
    count: int
    shape: tuple[int, ...]
    role: Role
    matrices: tuple[int, ...] | None
    weight_decay: float
    elements: int
    state_bytes: int


def explain(config: ExplainConfig) -> int:
    """Print a row for each kind of parameter, and the totals."""
    rows = explain_parameters(load_skeleton(config.model or config.champion.path), config.optimizer)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no edge to wrap at
        console = Console(width=_PIPE_COLUMNS)
    console.print(_table(rows, config.optimizer))
    for line in _totals(rows):
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def explain_parameters(model: nn.Module, config: OptimizerConfig) -> list[ParameterRow]:
    """Rows in the model's order. Raises InputError as assign_roles does."""
    muon = config.muon_grokfast
    members: dict[tuple[object, ...], list[AssignedParameter]] = {}
    for assigned in assign_roles(model, muon):
        if config.name == "adamw":
            role = Role("adamw", reason="optimizer.name is adamw")
            assigned = AssignedParameter(assigned.names, assigned.parameter, role)
        patterns = tuple(_INDEX.sub("*", name) for name in assigned.names)
        key = (patterns, assigned.parameter.shape, assigned.role, assigned.role.reason)
        members.setdefault(key, []).append(assigned)
    decay = config.adamw.weight_decay if config.name == "adamw" else muon.weight_decay
    buffers = {algorithm: _buffers(algorithm, config.name, muon) for algorithm in ("muon", "adamw")}
    return [_row(group, decay, buffers) for group in members.values()]


def _buffers(algorithm: str, name: str, config: MuonGrokfastConfig) -> int:
    """Float32 numbers that the optimizer keeps for each element of a parameter."""
    filtered = name != "adamw" and config.grokfast_lambda > 0
    if algorithm == "muon":
        return 1 + filtered
    return 2 + (filtered and config.grokfast_on_adamw)


def _row(group: Sequence[AssignedParameter], decay: float, buffers: dict[str, int]) -> ParameterRow:
    first, role = group[0], group[0].role
    names = [_INDEX.sub("*", name) if len(group) > 1 else name for name in first.names]
    elements = sum(assigned.parameter.numel() for assigned in group)
    muon = role.algorithm == "muon"
    return ParameterRow(
        pattern=names[0],
        aliases=tuple(names[1:]),
        count=len(group),
        shape=tuple(first.parameter.shape),
        role=role,
        matrices=tuple(as_matrices(first.parameter.detach(), role.layout).shape) if muon else None,
        weight_decay=decay if first.decays else 0.0,
        elements=elements,
        state_bytes=_FLOAT32 * buffers[role.algorithm] * elements,
    )


def _table(rows: Sequence[ParameterRow], config: OptimizerConfig) -> Table:
    table = Table(title=f"optimizer.name = {config.name}", title_justify="left")
    for heading in ("parameter", "shape", "algorithm", "layout", "decay", "why"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        name = row.pattern + (f" ×{row.count}" if row.count > 1 else "")
        why = row.role.reason + "".join(f", tied to {alias}" for alias in row.aliases)
        table.add_row(
            name,
            _sizes(row.shape),
            row.role.algorithm,
            _layout(row),
            f"{row.weight_decay:g}",
            why,
        )
    return table


def _layout(row: ParameterRow) -> str:
    """As in "fused_qkv 3 of 512×512, transposed"; empty for AdamW, which sees no matrices."""
    if row.matrices is None:
        return ""
    batch, *matrix = row.matrices
    whole = batch == 1 and tuple(matrix) == row.shape
    seen = "" if whole else f" {batch} of {_sizes(matrix)}"
    return row.role.layout + seen + (", transposed" if row.role.transposed else "")


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _totals(rows: Sequence[ParameterRow]) -> list[str]:
    counts: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    state: Counter[str] = Counter()
    for row in rows:
        for algorithm in (row.role.algorithm, "total"):
            counts[algorithm] += row.count
            elements[algorithm] += row.elements
            state[algorithm] += row.state_bytes
    return [
        f"{algorithm:6} {counts[algorithm]:,} tensors, {elements[algorithm]:,} parameters "
        f"({elements[algorithm] / elements['total']:.1%}), optimizer state "
        f"{state[algorithm]:,} bytes"
        for algorithm in ("muon", "adamw", "total")
    ]
