"""Which versions are old: the rule of `ModelRegistry.gc`, without a registry."""

from __future__ import annotations

from collections.abc import Sequence

from distforge.errors import InputError, require_name
from distforge.registry.records import ModelVersion, split_version


def choose_removed(
    versions: Sequence[ModelVersion], model_type: str, keep_last: int, keep_every: int
) -> list[str]:
    """The versions of ``model_type`` that may go, by number.

    Args:
        versions: all of the registry, so that lineage is known.
        model_type: the name to clean.
        keep_last: so many of the newest are kept, >= 1.
        keep_every: multiples of this number are kept; 0 keeps no more.

    A version with an alias is kept, and so is every ancestor of a version that is kept, of any
    name: a lineage is never cut.
    """
    require_name("model_type", model_type)
    if keep_last < 1 or keep_every < 0:
        raise InputError(
            f"keep_last is {keep_last} and keep_every {keep_every}; expected at least 1 and 0"
        )
    ours = [v for v in versions if split_version(v.version)[0] == model_type]
    ours.sort(key=lambda v: _number(v.version))
    newest = {v.version for v in ours[-keep_last:]}
    old = {
        v.version
        for v in ours
        if v.version not in newest
        and not v.aliases
        and not (keep_every and _number(v.version) % keep_every == 0)
    }
    parents = {v.version: v.parent for v in versions}
    for version in [v for v in parents if v not in old]:
        while version:
            old.discard(version)
            version = parents.get(version, "")
    return sorted(old, key=_number)


def _number(version: str) -> int:
    return int(split_version(version)[1])
