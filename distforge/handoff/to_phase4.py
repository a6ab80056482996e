"""What phase 3 hands to phase 4: a model directory that says what it reached, and proves its bytes.

``handoff.json`` lies in the directory, under its manifest:

    {"phase": 3, "baked_accuracy": 0.947, "verdict": "PASS", ...}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.data.strategies import THINKING_TOKENS
from distforge.errors import InputError
from distforge.handoff.from_phase2 import check_metadata, read_json
from distforge.models.loading import Champion, load_champion
from distforge.registry.manifest import verify_manifest, write_manifest

HANDOFF_FILE = "handoff.json"
MINIMUM_ACCURACY = 0.85
"""Fraction of held-out questions that the baked model must have answered rightly."""
PASS = "PASS"
# What runs when a careless loader meets it. Weights are safetensors; nothing else is needed.
_EXECUTABLE = (".py", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".so")


def write_handoff(
    directory: Path,
    baked_accuracy: float,
    verdict: str,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write ``handoff.json`` and a new manifest into an exported model; the manifest's id.

    Args:
        directory: an exported model.
        baked_accuracy: fraction of held-out questions that step 1's model answered, in [0, 1].
        verdict: of the anti-theatre tests: PASS, THEATRE or INCONCLUSIVE.
        metadata: what else phase 4 may want to know, as JSON (registry version, metrics).

    Writing vouches for nothing: `find_faults` judges what was written.
    """
    content = {
        **(metadata or {}),
        "phase": 3,
        "baked_accuracy": baked_accuracy,
        "verdict": verdict,
    }
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    durable.write_text(directory / HANDOFF_FILE, text + "\n")
    return write_manifest(directory)


def find_faults(directory: Path) -> list[str]:
    """All that keeps the model in ``directory`` from phase 4, in words; empty when it may go.

    It must match its manifest, hold no code, load with transformers' ``from_pretrained`` as it is,
    write each of the eight thinking tokens as one id, and state phase 3, a baked accuracy of at
    least 0.85 and the verdict PASS.

    Raises:
        InputError: ``directory`` is not a directory.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give the model that is handed over")
    faults = []
    try:
        verify_manifest(directory)
    except InputError as error:
        faults.append(f"manifest: {error}")
    for path in sorted(directory.rglob("*")):
        if path.suffix in _EXECUTABLE:
            faults.append(
                f"{path.relative_to(directory)} can hold code; only safetensors are taken"
            )
    faults += _model_faults(directory)
    faults += _statement_faults(directory / HANDOFF_FILE)
    return faults


def find_champion_faults(source: Path) -> list[str]:
    """All that keeps phase 2's champion from phase 3: it must load, and a ``.safetensors`` or
    ``.pt`` must state phase 2, that it was selected, and a fitness improvement of at least 0.20."""
    try:
        champion = load_champion(str(source))
        if source.is_file():
            # load_champion accepts a file that states nothing of phase 2; a hand-off does not.
            check_metadata({"phase": None, **champion.metadata}, source)
    except InputError as error:
        return [str(error)]
    return []


def _model_faults(directory: Path) -> list[str]:
    try:
        model = load_champion(str(directory))
    except InputError as error:
        return [f"model: {error}"]
    return [
        f"thinking token {token} is not one id of the tokenizer with a row in the model; add it "
        "with add_thinking_tokens and train it"
        for token in THINKING_TOKENS
        if not _is_single(model, token)
    ]


def _is_single(model: Champion, token: str) -> bool:
    ids = model.tokenizer.encode(token, add_special_tokens=False)
    rows = model.model.get_input_embeddings().weight.shape[0]
    return len(ids) == 1 and ids[0] < rows and model.tokenizer.decode(ids).strip() == token


def _statement_faults(path: Path) -> list[str]:
    if not path.is_file():
        return [f"{HANDOFF_FILE} is missing; step 2 writes it with the accuracy and the verdict"]
    try:
        stated = read_json(path)
    except InputError as error:
        return [str(error)]
    faults = []
    if stated.get("phase") != 3:
        faults.append(f"phase is {stated.get('phase')!r}, not 3")
    accuracy = stated.get("baked_accuracy")
    if isinstance(accuracy, bool) or not isinstance(accuracy, int | float):
        reached = math.nan
    else:
        reached = float(accuracy)
    if not MINIMUM_ACCURACY <= reached <= 1:
        faults.append(f"baked_accuracy is {accuracy!r}, not a fraction of at least 0.85")
    if stated.get("verdict") != PASS:
        faults.append(f"verdict is {stated.get('verdict')!r}, not 'PASS'")
    return faults
