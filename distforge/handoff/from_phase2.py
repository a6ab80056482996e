"""Whether phase 3 takes a champion of phase 2."""

from __future__ import annotations

from pathlib import Path

from distforge.errors import InputError
from distforge.models.champion_file import check_metadata
from distforge.models.loading import load_champion


def find_champion_faults(source: Path) -> list[str]:
    """All that keeps phase 2's champion from phase 3: it must load, and a ``.safetensors`` or
    ``.pt`` must state phase 2, that it was selected, and a fitness improvement of at least 0.20."""
    try:
        champion = load_champion(str(source), "auto")
        if source.is_file():
            # load_champion accepts a file that states nothing of phase 2; a hand-off does not.
            check_metadata({"phase": None, **champion.metadata}, source)
    except InputError as error:
        return [str(error)]
    return []
