"""Which parameter is trained by Muon and which by AdamW.

Muon is for the hidden matrices: its update has all singular values near one, which suits a linear
map between activations, not a lookup table (embedding, head) and not a vector (norm, bias).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from distforge.errors import InputError
from distforge.optim.config import Algorithm, MuonGrokfastConfig
from distforge.optim.heads import head_layouts
from distforge.optim.layout import Layout, require_shape, whole_shape
from distforge.optim.patterns import pattern_overrides

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
        return len(whole_shape(self.parameter)) >= 2


_CONVOLUTION = Role("muon", "conv", reason="convolution")
_GROUPED = Role("adamw", reason="grouped convolution")
_EMBEDDING = Role("adamw", reason="embedding")


def assign_roles(
    source: nn.Module | NamedParameters, config: MuonGrokfastConfig, *, frozen: bool = False
) -> list[AssignedParameter]:
    """The role of every trainable parameter, in the order of ``source``.

    Args:
        source: a model (roles come from its modules, then from names) or the pairs that
            ``named_parameters()`` gives (roles come from names and shapes).
        config: its ``muon_patterns`` and ``adamw_patterns`` overrule both.
        frozen: also those that need no gradient now, in case they will; else they are left out.

    A tied weight appears once; if any of its names is a table or
    a head, it is trained by AdamW. Raises InputError when nothing is left to train, when a pattern
    matches no parameter or contradicts another one, and for a parameter whose own shape is gone.
    """
    if isinstance(source, nn.Module):
        pairs = list(source.named_parameters(remove_duplicate=False))
    else:
        pairs = checked_pairs(source)
    for name, param in pairs:
        require_shape(name, param)
    tree = _Tree.of(pairs)
    by_module = _roles_of_modules(source, tree) if isinstance(source, nn.Module) else {}
    trained = [(name, param) for name, param in pairs if param.requires_grad]
    if not trained:
        raise InputError(
            "there is no trainable parameter: give a model with requires_grad parameters."
        )
    if frozen:
        pairs = [(name, p) for name, p in pairs if p.requires_grad or p.is_floating_point()]
    else:
        pairs = trained

    names: dict[int, list[str]] = defaultdict(list)
    parameters: dict[int, nn.Parameter] = {}
    for name, param in pairs:
        names[id(param)].append(name)
        parameters[id(param)] = param
    heads = head_layouts(source) if config.split_heads else {}
    overrides = pattern_overrides(names, config)
    assigned = []
    for key, param in parameters.items():
        role = by_module.get(key) or _role_of_names(names[key], param, tree)
        if key in heads and role.algorithm == "muon":
            role = replace(role, layout=heads[key], reason=f"{role.reason}, by heads")
        if key in overrides and overrides[key][0] != role.algorithm:
            role = _overridden(*overrides[key], names[key][0], param)
        assigned.append(AssignedParameter(tuple(names[key]), param, role))
    return assigned


def checked_pairs(source: NamedParameters) -> list[tuple[str, nn.Parameter]]:
    """The pairs as a list; InputError for what is none."""
    pairs = list(source)
    for pair in pairs:
        named = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not named or not isinstance(pair[1], Tensor):
            raise InputError(
                f"{_described(pair)} is not a (name, parameter) pair: pass the model itself, "
                "or model.named_parameters(), since names decide between Muon and AdamW."
            )
    return pairs


def _described(item: Any) -> str:
    shape = f" of shape {tuple(item.shape)}" if isinstance(item, Tensor) else ""
    return f"{type(item).__name__}{shape}"


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
            tables.append(whole_shape(module.weight))
        found.append(getattr(module, "get_output_embeddings", lambda: None)())
    for name, module in model.named_modules():
        # In a block, of which there are many, it is a hidden matrix that happens to be so large.
        in_a_block = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.Linear) and not in_a_block:
            found += [module] if whole_shape(module.weight) in tables else []
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
        shapes = {name: whole_shape(param) for name, param in pairs}
        widths = {name: shape[0] for name, shape in shapes.items() if len(shape) == 1}
        return cls(frozenset(routed), widths)

    def is_router(self, name: str) -> bool:
        parts = name.split(".")
        return any(
            _ROUTER.fullmatch(part) and ".".join(parts[:at]) in self.routed
            for at, part in enumerate(parts)
        )

    def is_transposed(self, name: str, param: Tensor) -> bool:
        """Whether the bias is as long as the rows: stored as (in, out)."""
        width = self.widths.get(f"{name.removesuffix('weight')}bias")
        shape = whole_shape(param)
        return len(shape) == 2 and width == shape[1] != shape[0]


def _role_of_names(names: list[str], param: Tensor, tree: _Tree) -> Role:
    roles = [_role_of_name(name, param, tree) for name in names]
    return next((role for role in roles if role.algorithm == "adamw"), roles[0])


def _role_of_name(name: str, param: Tensor, tree: _Tree) -> Role:
    parts, shape = name.split("."), whole_shape(param)
    # A matrix of one row or column is a vector: orthogonalising it would only normalise it.
    if len(shape) < 2 or sum(size > 1 for size in shape) < 2:
        return Role("adamw", reason="vector")
    if _TOP_LEVEL_OUTPUT.fullmatch(name) or any(map(_TABLE_OR_HEAD.fullmatch, parts)):
        return Role("adamw", reason="named as a table or head")
    if _STATE_SPACE.fullmatch(parts[-1]):
        return Role("adamw", reason="state space")
    if tree.is_router(name):
        return Role("adamw", reason="router")
    if len(shape) == 3 and any(map(_CONV.fullmatch, parts)):
        return _GROUPED if shape[1] == 1 else _CONVOLUTION
    if len(shape) > 3:
        return _CONVOLUTION
    role = _matrix_role(parts, shape)
    return replace(role, transposed=True) if tree.is_transposed(name, param) else role


def _matrix_role(parts: list[str], shape: tuple[int, ...]) -> Role:
    owner = parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]
    owner = owner.removesuffix("_weight")
    if len(shape) == 2 and _FUSED_QKV.fullmatch(owner):
        long, short = max(shape), min(shape)
        if long == 3 * short:
            return Role("muon", "fused_qkv", reason="fused query, key and value")
    return Role("muon", reason="hidden matrix" if len(shape) == 2 else "stack of hidden matrices")


def _overridden(algorithm: Algorithm, pattern: str, name: str, param: Tensor) -> Role:
    reason = f"{algorithm}_patterns: {pattern}"
    if algorithm == "adamw":
        return Role("adamw", reason=reason)
    shape = whole_shape(param)
    if len(shape) < 2:
        raise InputError(
            f"parameter {name!r} of shape {shape} is named in muon_patterns, "
            "but Muon trains matrices: let AdamW have it."
        )
    return Role("muon", "conv" if len(shape) > 3 else "matrix", reason=reason)
