"""How many held-out questions of each strategy a run's accuracies are over."""

import json
from collections import Counter
from pathlib import Path

_HELDOUT = Path("data", "heldout.jsonl")


def asked_by_strategy(run_dir: Path, asked: int) -> dict[str, int]:
    """By strategy and ``overall``, of the last ``asked`` held-out questions of a run: those before
    them picked the weights. Empty where the run keeps no questions, or fewer than that."""
    path = run_dir / _HELDOUT
    if not asked or not path.is_file():
        return {}
    lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    if len(lines) < asked:
        return {}
    counts = Counter(str(json.loads(line).get("strategy")) for line in lines[-asked:])
    return {**counts, "overall": asked}
