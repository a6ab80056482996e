"""What phase 3 hands to phase 4: a model directory that says what it reached, and proves its bytes.

``handoff.json`` lies in the directory, under its manifest; `Statement` is what it says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distforge import __version__
from distforge.data.strategies import THINKING_TOKENS
from distforge.errors import InputError, first_line
from distforge.handoff.statement import HANDOFF_FILE, Statement, find_statement_faults
from distforge.models.loading import check_pairing, load_model, load_tokenizer
from distforge.models.weight_files import weights_sha256
from distforge.registry.manifest import MANIFEST_NAME, find_manifest_faults, write_manifest

# What runs when a careless loader meets it. Weights are safetensors; nothing else is needed.
_EXECUTABLE = (
    *(".py", ".pyc", ".sh", ".so", ".dll", ".dylib"),
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"),
)


def write_handoff(
    directory: Path, verdict: str, theater: Mapping[str, Any], **measured: Any
) -> str:
    """Write ``handoff.json`` and a new manifest into an exported model; the manifest's id.

    Writing vouches for nothing: `find_faults` judges what was written.

    Args:
        directory: an exported model with its tokenizer.
        verdict: of the anti-theatre tests: PASS, THEATRE or INCONCLUSIVE.
        theater: its evidence, `Verdict.as_json`; empty where nothing was judged.
        measured: the fields of `Statement` that the model does not show by itself, as plain values.
    """
    found = {
        "thinking_tokens": _thinking_ids(load_tokenizer(directory)),
        "weights_sha256": weights_sha256(directory),
        "distforge_version": __version__,
    }
    fields = {**measured, "verdict": verdict, "theater": dict(theater), **found}
    Statement.of(fields).write(directory)
    return write_manifest(directory)


def find_faults(directory: Path) -> list[str]:
    """All that keeps the model in ``directory`` from phase 4, in words and with the command that
    fixes it; empty when it may go.

    It must match its manifest, hold no code, load with transformers' ``from_pretrained`` as it is,
    write each of the eight thinking tokens as one id, and state, of these weights and ids, a baked
    accuracy of at least 0.85 and the verdict PASS, with bounds that make it so.

    Raises:
        InputError: ``directory`` is not a directory.
    """
    try:
        os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{directory} is not a directory; give the model that is handed over"
        ) from None
    except OSError as error:
        return [f"{directory} cannot be read ({error.strerror}); `chmod -R u+rX {directory}`"]
    found, model_faults = _look(directory)
    return [
        *(f"manifest: {fault}; {_FETCH}" for fault in find_manifest_faults(directory)),
        *_code_faults(directory),
        *model_faults,
        *find_statement_faults(directory, found, _remedies(directory)),
    ]


_FETCH = "`distforge registry show VERSION --download DIR` fetches it as it was registered"


def _think(directory: Path) -> str:
    """The command that trains, judges and exports the model of ``directory`` once more."""
    run = directory.parent if (directory.parent / "config.toml").is_file() else Path("RUN")
    return f"distforge think --config {run}/config.toml --existing replace"


def _remedies(directory: Path) -> dict[str, str]:
    """By field of the statement, see `find_statement_faults`."""
    think = _think(directory)
    verdict = (
        f"`distforge judge --model {directory} --data FILE` says what more held-out items show, "
        f"`{think}` trains and judges again"
    )
    return {
        "": f"`{think}` writes it again",
        "baked_accuracy": f"bake further with `distforge bake`, then `{think} --baked RUN`",
        "baked_accuracy=null": (
            "measure step 1's model with `distforge evaluate --model BAKED --data FILE`, then "
            f"`{think} --baked-accuracy FRACTION`"
        ),
        "verdict": verdict,
        "theater": verdict,
    }


def _code_faults(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.suffix.lower() in _EXECUTABLE:
            yield (
                f"{name} can hold code, only safetensors are taken; `rm {path}`, and "
                f"`{_think(directory)}` for a manifest without it"
            )
        elif path.suffix == ".json" and path.name not in (HANDOFF_FILE, MANIFEST_NAME):
            try:
                content = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                continue  # whoever needs the file says so
            if _names_code(content):
                yield (
                    f"{name} has 'auto_map', which names code to run; "
                    f"`{_think(directory)}` exports the model without it"
                )


def _names_code(content: Any) -> bool:
    """Whether ``auto_map`` stands at any level, but not as a token of a vocabulary."""
    if not isinstance(content, dict):
        return False
    if isinstance(content.get("auto_map"), dict | list | str):
        return True
    return any(_names_code(value) for value in content.values())


def _look(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """What the model is, for `find_statement_faults`, and all that is wrong with it."""
    found: dict[str, Any] = {}
    faults, rows, tokenizer = [], None, None
    again = f"`{_think(directory)}` exports it again"
    try:
        model = load_model(directory, str(directory))
        rows = model.get_input_embeddings().weight.shape[0]
        found["weights_sha256"] = weights_sha256(directory)
    except (InputError, OSError) as error:
        faults.append(f"model: {first_line(error)}; {again}")
    try:
        tokenizer = load_tokenizer(directory)
        found["thinking_tokens"] = _thinking_ids(tokenizer)
        if rows is not None:
            check_pairing(model, tokenizer, str(directory))
    except InputError as error:
        faults.append(f"tokenizer: {error}; {again}")
    for token in THINKING_TOKENS if tokenizer is not None else ():
        index = found["thinking_tokens"].get(token)
        if index is None or (rows is not None and index >= rows):
            faults.append(
                f"thinking token {token} is not one id of the tokenizer with a row in the model; "
                "`distforge bake` adds and trains it"
            )
    return found, faults


def _thinking_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The id of each thinking token that the tokenizer writes as one."""
    ids = {token: tokenizer.encode(token, add_special_tokens=False) for token in THINKING_TOKENS}
    return {
        token: found[0]
        for token, found in ids.items()
        if len(found) == 1 and tokenizer.decode(found).strip() == token
    }
