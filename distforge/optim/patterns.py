"""Patterns of parameter names by which a user overrules the choice of algorithm."""

from __future__ import annotations

from fnmatch import fnmatchcase

from distforge.errors import InputError
from distforge.optim.config import Algorithm, MuonGrokfastConfig

Override = tuple[Algorithm, str]


def pattern_overrides(
    names: dict[int, list[str]], config: MuonGrokfastConfig
) -> dict[int, Override]:
    overrides: dict[int, Override] = {}
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
