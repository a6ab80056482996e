"""Which parameter is trained by Muon and which by AdamW.

Muon is for the hidden matrices: its update has all singular values near one, which suits a linear
map between activations, not a lookup table (embedding, head) and not a vector (norm, bias).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from distforge.errors import InputError
from distforge.optim.config import Algorithm, MuonGrokfastConfig
from distforge.optim.layout import Layout

NamedParameters = Iterable[tuple[str, nn.Parameter]]

# One component of a dotted name that marks a lookup table or an output head.
_TABLE_OR_HEAD = re.compile(
    r"\w*embed\w*|wte|wpe|tok_emb|pos_emb|(\w+_)?head|classifier|score|output_projection"
)
# The whole name: "output" inside a block (BERT's attention.output.dense) is a hidden matrix.
_TOP_LEVEL_OUTPUT = re.compile(r"(module\.|model\.|_orig_mod\.)*output\.weight")
# What a state-space mixer holds beside its projections: rates and skips of single channels.
_STATE_SPACE = re.compile(r"A_logs?|Ds?|dt_bias|time_(decay|first|mix\w*|maa\w*)")
# Beside experts, it chooses among them.
_ROUTER = re.compile(r"(\w+_)?(gate|router)")
# Query, key and value as equal blocks one after another (GPT-2, Phi-3, nn.MultiheadAttention).
# GPT-NeoX interleaves them per head under another name, query_key_value: it stays one matrix.
_FUSED_QKV = re.compile(r"c_attn|qkv_proj|in_proj|Wqkv|qkv")
_CONV = re.compile(r"\w*conv\w*")
_Override = tuple[Algorithm, str]


@dataclass(frozen=True)
class Role:
    """How one parameter is trained.

    algorithm: "muon" or "adamw".
    layout: how it is seen as matrices, see distforge.optim.layout.
    transposed: stored as (in, out), as transformers' Conv1D does. Orthogonalisation commutes with
        the transpose; the spectral scale does not.
    reason: the rule that chose, in words; it does not make two roles differ.
    """

    algorithm: Algorithm
    layout: Layout = "matrix"
    transposed: bool = False
    reason: str = field(default="", compare=False)


@dataclass(frozen=True)
class AssignedParameter:
    """A trainable parameter, all its names (several when it is tied), and how it is trained."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    role: Role

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices and tables, not to vectors."""
        return self.parameter.ndim >= 2


_CONVOLUTION = Role("muon", "conv", reason="convolution")
_GROUPED = Role("adamw", reason="grouped convolution")
_EMBEDDING = Role("adamw", reason="embedding")


def split_parameters(
    source: nn.Module | NamedParameters, config: MuonGrokfastConfig
) -> list[dict[str, Any]]:
    """Parameter groups for MuonGrokfast, of at least one parameter each, Muon's first.

    One group for each role, matrices and vectors apart; see assign_roles for arguments and errors.
    """
    groups: dict[tuple[Role, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for assigned in assign_roles(source, config):
        member = (assigned.names[0], assigned.parameter)
        groups[assigned.role, assigned.decays].append(member)
    ordered = sorted(groups.items(), key=lambda item: _group_order(*item[0]))
    return [_group(role, decays, members, config) for (role, decays), members in ordered]


def assign_roles(
    source: nn.Module | NamedParameters, config: MuonGrokfastConfig
) -> list[AssignedParameter]:
    """The role of every trainable parameter, in the order of ``source``.

    Args:
        source: a model (roles come from its modules, then from names) or the pairs that
            ``named_parameters()`` gives (roles come from names and shapes).
        config: its ``muon_patterns`` and ``adamw_patterns`` overrule both.

    Frozen parameters are left out. A tied weight appears once; if any of its names is a table or
    a head, it is trained by AdamW. Raises InputError when nothing is left to train, when a pattern
    matches no parameter or contradicts another one.
    """
    if isinstance(source, nn.Module):
        pairs = list(source.named_parameters(remove_duplicate=False))
    else:
        pairs = _checked_pairs(source)
    tree = _Tree.of(pairs)
    by_module = _roles_of_modules(source, tree) if isinstance(source, nn.Module) else {}
    pairs = [(name, param) for name, param in pairs if param.requires_grad]
    if not pairs:
        raise InputError(
            "there is no trainable parameter: give a model with requires_grad parameters."
        )

    names: dict[int, list[str]] = defaultdict(list)
    parameters: dict[int, nn.Parameter] = {}
    for name, param in pairs:
        names[id(param)].append(name)
        parameters[id(param)] = param
    overrides = _pattern_overrides(names, config)
    assigned = []
    for key, param in parameters.items():
        role = by_module.get(key) or _role_of_names(names[key], param, tree)
        role = _overridden(role, overrides.get(key), names[key], param)
        assigned.append(AssignedParameter(tuple(names[key]), param, role))
    return assigned


def _checked_pairs(source: NamedParameters) -> list[tuple[str, nn.Parameter]]:
    pairs = list(source)
    for pair in pairs:
        named = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not named or not isinstance(pair[1], Tensor):
            raise InputError(
                f"{type(pair).__name__} is not a (name, parameter) pair: "
                "pass model.named_parameters(), since names decide between Muon and AdamW."
            )
    return pairs


def _roles_of_modules(model: nn.Module, tree: _Tree) -> dict[int, Role]:
    """Of the parameters whose module says what they are."""
    roles: dict[int, Role] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            continue
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            roles[id(weight)] = _EMBEDDING
        elif isinstance(module, nn.modules.conv._ConvNd) and id(weight) not in roles:
            # A grouped convolution is a stack of small filters: no matrix between activations.
            roles[id(weight)] = _GROUPED if module.groups > 1 else _CONVOLUTION
        elif type(module).__name__ == "Conv1D" and id(weight) not in roles:
            by_name = _role_of_name(f"{name}.weight", weight, tree)
            roles[id(weight)] = replace(by_name, transposed=by_name.algorithm == "muon")
    for head in _heads(model):
        tied = roles.get(id(head)) == _EMBEDDING
        roles[id(head)] = Role("adamw", reason="embedding and head" if tied else "head")
    return roles


def _heads(model: nn.Module) -> list[nn.Parameter]:
    """Weights that make logits: what transformers calls so, and every linear map of the model's
    outermost level that has the shape of an embedding, whatever its name."""
    found, tables = [], []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            tables.append(module.weight.shape)
        found.append(getattr(module, "get_output_embeddings", lambda: None)())
    for name, module in model.named_modules():
        # In a block, of which there are many, it is a hidden matrix that happens to be so large.
        in_a_block = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.Linear) and not in_a_block and module.weight.shape in tables:
            found.append(module)
    weights = [getattr(head, "weight", None) for head in found]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


@dataclass(frozen=True)
class _Tree:
    """What the names and shapes of all parameters say of one.

    routed: names of the modules that hold experts. widths: length of each vector, by name.
    """

    routed: frozenset[str]
    widths: dict[str, int]

    @classmethod
    def of(cls, pairs: list[tuple[str, nn.Parameter]]) -> _Tree:
        routed = set()
        for name, _ in pairs:
            parts = name.split(".")
            routed |= {".".join(parts[:at]) for at, part in enumerate(parts) if "experts" in part}
        return cls(frozenset(routed), {name: len(p) for name, p in pairs if p.ndim == 1})

    def is_router(self, name: str) -> bool:
        parts = name.split(".")
        return any(
            _ROUTER.fullmatch(part) and ".".join(parts[:at]) in self.routed
            for at, part in enumerate(parts)
        )

    def is_transposed(self, name: str, param: Tensor) -> bool:
        """Whether the bias is as long as the rows: stored as (in, out)."""
        width = self.widths.get(f"{name.removesuffix('weight')}bias")
        return param.ndim == 2 and width == param.shape[1] != param.shape[0]


def _role_of_names(names: list[str], param: Tensor, tree: _Tree) -> Role:
    roles = [_role_of_name(name, param, tree) for name in names]
    return next((role for role in roles if role.algorithm == "adamw"), roles[0])


def _role_of_name(name: str, param: Tensor, tree: _Tree) -> Role:
    parts = name.split(".")
    # A matrix of one row or column is a vector: orthogonalising it would only normalise it.
    if param.ndim < 2 or sum(size > 1 for size in param.shape) < 2:
        return Role("adamw", reason="vector")
    if _TOP_LEVEL_OUTPUT.fullmatch(name) or any(map(_TABLE_OR_HEAD.fullmatch, parts)):
        return Role("adamw", reason="named as a table or head")
    if _STATE_SPACE.fullmatch(parts[-1]):
        return Role("adamw", reason="state space")
    if tree.is_router(name):
        return Role("adamw", reason="router")
    if param.ndim == 3 and any(map(_CONV.fullmatch, parts)):
        return _GROUPED if param.shape[1] == 1 else _CONVOLUTION
    if param.ndim > 3:
        return _CONVOLUTION
    role = _matrix_role(parts, param)
    return replace(role, transposed=True) if tree.is_transposed(name, param) else role


def _matrix_role(parts: list[str], param: Tensor) -> Role:
    owner = parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]
    owner = owner.removesuffix("_weight")
    if param.ndim == 2 and _FUSED_QKV.fullmatch(owner):
        long, short = max(param.shape), min(param.shape)
        if long == 3 * short:
            return Role("muon", "fused_qkv", reason="fused query, key and value")
    return Role("muon", reason="hidden matrix" if param.ndim == 2 else "stack of hidden matrices")


def _pattern_overrides(
    names: dict[int, list[str]], config: MuonGrokfastConfig
) -> dict[int, _Override]:
    overrides: dict[int, _Override] = {}
    choices: tuple[tuple[Algorithm, tuple[str, ...]], ...] = (
        ("muon", config.muon_patterns),
        ("adamw", config.adamw_patterns),
    )
    for algorithm, patterns in choices:
        for pattern in patterns:
            hits = [
                key
                for key, aliases in names.items()
                if any(fnmatchcase(alias, pattern) for alias in aliases)
            ]
            if not hits:
                raise InputError(
                    f"{algorithm}_patterns has {pattern!r}, which matches no trainable parameter: "
                    "correct it or take it out."
                )
            for key in hits:
                if overrides.setdefault(key, (algorithm, pattern))[0] != algorithm:
                    raise InputError(
                        f"parameter {names[key][0]!r} matches muon_patterns and adamw_patterns: "
                        "let one of them match."
                    )
    return overrides


def _overridden(role: Role, override: _Override | None, names: list[str], param: Tensor) -> Role:
    if override is None or override[0] == role.algorithm:
        return role
    algorithm, pattern = override
    reason = f"{algorithm}_patterns: {pattern}"
    if algorithm == "adamw":
        return Role("adamw", reason=reason)
    if param.ndim < 2:
        raise InputError(
            f"parameter {names[0]!r} of shape {tuple(param.shape)} is named in muon_patterns, "
            "but Muon trains matrices: let AdamW have it."
        )
    return Role("muon", "conv" if param.ndim > 3 else "matrix", reason=reason)


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
