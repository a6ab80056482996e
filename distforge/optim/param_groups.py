"""Parameter groups as torch takes them: one for each role, matrices and vectors apart."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from distforge.optim.config import MuonGrokfastConfig
from distforge.optim.roles import NamedParameters, Role, assign_roles, checked_pairs


def split_parameters(
    source: nn.Module | NamedParameters, config: MuonGrokfastConfig, *, frozen: bool = False
) -> list[dict[str, Any]]:
    """Parameter groups for MuonGrokfast, of at least one parameter each, Muon's first.

    One group for each role, matrices and vectors apart; see assign_roles for arguments and errors.
    """
    groups: dict[tuple[Role, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for assigned in assign_roles(source, config, frozen=frozen):
        member = (assigned.names[0], assigned.parameter)
        groups[assigned.role, assigned.decays].append(member)
    ordered = sorted(groups.items(), key=lambda item: _group_order(*item[0]))
    return [_group(role, decays, members, config) for (role, decays), members in ordered]


def groups_by_role(group: dict[str, Any], config: MuonGrokfastConfig) -> list[dict[str, Any]]:
    """A group as torch takes it, of named parameters or a module, as groups of one role each.

    What it sets goes before what the roles say. Raises InputError for parameters without names.
    """
    members: Any = group["params"]
    if not isinstance(members, nn.Module):
        alone: list[Any] = [members]
        members = checked_pairs(alone if isinstance(members, Tensor) else members)
    pairs = members.named_parameters() if isinstance(members, nn.Module) else members
    names = [name for name, _ in pairs]
    # A pattern of the whole model need not match what comes late.
    of_these = {
        field: tuple(p for p in getattr(config, field) if any(fnmatchcase(n, p) for n in names))
        for field in ("muon_patterns", "adamw_patterns")
    }
    own = {name: value for name, value in group.items() if name != "params"}
    return [
        part | own for part in split_parameters(members, config.replace(**of_these), frozen=True)
    ]


def _group_order(role: Role, decays: bool) -> tuple[bool, str, bool, bool]:
    return (role.algorithm == "adamw", role.layout, role.transposed, not decays)


def _group(
    role: Role,
    decays: bool,
    members: list[tuple[str, nn.Parameter]],
    config: MuonGrokfastConfig,
) -> dict[str, Any]:
    group: dict[str, Any] = {
        "params": members,
        "algorithm": role.algorithm,
        "weight_decay": config.weight_decay if decays else 0.0,
    }
    if role.algorithm == "muon":
        group |= {"layout": role.layout, "transposed": role.transposed}
    return group
