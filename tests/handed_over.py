"""A tiny model as phase 3 hands it over, with a verdict that passes; made up but for its bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distforge.data.strategies import THINKING_TOKENS
from distforge.handoff.to_phase4 import write_handoff
from distforge.handoff.verdict import Measure, Verdict
from distforge.models.export import export_model
from distforge.models.vocabulary import add_thinking_tokens
from distforge.registry import write_manifest
from tests.shared import build_once
from tests.tiny_models import tiny_llama, tiny_tokenizer

MEASURED: dict[str, Any] = {
    "baked_accuracy": 0.947,
    "baked_measured_on": {"n": 2000, "dataset_sha256": "1" * 64},
    "before_accuracy": 0.748,
    "accuracy": 0.912,
    "measured_on": {"n": 1800, "dataset_sha256": "2" * 64},
    "task": "questions",
    "gain": 0.164,
    "gain_interval": [0.141, 0.187],
    "lineage": {"champion_sha256": "3" * 64, "baked_sha256": "4" * 64},
    "config_sha256": "5" * 64,
}


def verdict(ablation: tuple[float, float] = (0.31, 0.42)) -> Verdict:
    """One that passes, unless the bounds of its ablation say otherwise."""
    low, high = ablation
    return Verdict(
        measures={
            "divergence_edit": Measure(0.71, 0.68, 0.74, 0.30, 1800),
            "divergence_prediction": Measure(0.55, 0.49, 0.61, 0.30, 450),
            "ablation": Measure((low + high) / 2, low, high, 0.02, 1800),
            "correlation": Measure(0.62, 0.56, 0.67, 0.5, 1800),
        },
        controls={"own": 0.91, "none": 0.55, "filler": 0.41},
        items=1800,
        thoughts=8,
        alpha=0.05,
        floor=0.12,
    )


def save_model(directory: Path, tokens: Sequence[str] = THINKING_TOKENS) -> Path:
    """An export of a Llama of two layers with these thinking tokens."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    add_thinking_tokens(model, tokenizer, tokens, 0)
    export_model(model, tokenizer, directory)
    return directory


def handed_over() -> Path:
    """The directory that phase 4 takes; only to be read."""

    def build(root: Path) -> None:
        model = save_model(root / "model")
        write_handoff(model, "PASS", verdict().as_json(), **MEASURED)

    return build_once("handed-over", build) / "model"


def restate(directory: Path, **changes: Any) -> None:
    """Change the statement as somebody would by hand, and vouch for it with a new manifest."""
    path = directory / "handoff.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
    write_manifest(directory)
