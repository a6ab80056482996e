"""Hyperparameters as a user gives them: keywords of torch's optimizers, tensors, numpy numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distforge.errors import InputError, require_in
from distforge.optim.config import MuonGrokfastConfig

# What torch.optim.AdamW calls them.
_KEYWORDS = {
    "lr": ("muon_lr", "adamw_lr"),
    "betas": ("adamw_betas",),
    "eps": ("adamw_eps",),
}
_RANGES = {
    "lr": "[0, inf)",
    "weight_decay": "[0, inf)",
    "momentum": "[0, 1]",
    "eps": "[0, inf)",
    "neuron_beta": "[0, 1)",
    "grokfast_alpha": "[0, 1]",
    "grokfast_lambda": "[0, inf)",
}


def configured(config: MuonGrokfastConfig | None, keywords: dict[str, Any]) -> MuonGrokfastConfig:
    """``config``, or the defaults, with what ``keywords`` set.

    Keywords are the fields of MuonGrokfastConfig and ``lr`` (of all groups), ``betas`` and ``eps``
    (of AdamW's), as torch calls them; a field that is named itself goes before. Raises InputError
    for any other, and for a value out of its range.
    """
    fields: dict[str, Any] = {}
    for keyword, value in keywords.items():
        for name in _KEYWORDS.get(keyword, ()):
            fields[name] = number(keyword, value) if keyword == "lr" else value
    fields |= {name: value for name, value in keywords.items() if name not in _KEYWORDS}
    return (config or MuonGrokfastConfig()).replace(**fields)


def number(what: str, value: Any) -> Any:
    """A tensor, or a number or array of numpy's, of one element as Python's number; anything else
    as it is."""
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (RuntimeError, ValueError):
        shape = tuple(value.shape)
        raise InputError(
            f"{what} is a {type(value).__name__} of shape {shape}; expected one number"
        ) from None


def readable(group: dict[str, Any], index: int) -> dict[str, Any]:
    """The group with its hyperparameters as numbers, each in its range, or InputError."""
    numbers = {}
    for name in _RANGES.keys() & group.keys():
        value = group[name]
        if type(value) is float and 0.0 <= value < 1.0:
            continue  # in every range
        what = f"{name} of parameter group {index}"
        numbers[name] = number(what, value)
        require_in(_RANGES[name], **{what: numbers[name]})
    return group | numbers


def without_functions(group: dict[str, Any]) -> dict[str, Any]:
    """What of a group can be saved. Functions stay with the program, as a scheduler's do."""
    return {name: value for name, value in group.items() if not isinstance(value, Callable)}  # type: ignore[arg-type]
