"""Models, tokenizers and their configurations are loaded in one file: without code that comes with
them, and without a network."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LOADING = [ROOT / "distforge" / "models" / name for name in ("loading.py", "gguf_file.py")]
SOURCES = [path for room in ("distforge", "launch") for path in (ROOT / room).rglob("*.py")]
# What would read or run what comes from elsewhere, or ask for it.
FROM_ELSEWHERE = {
    *("snapshot_download", "hf_hub_download", "load_dataset", "load_state_dict_from_url"),
    *("push_to_hub", "get_class_from_dynamic_module"),
}


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """What each call's function is named, and on what it is called, where that is a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else ""
                yield function.attr, owner, node
            elif isinstance(function, ast.Name):
                yield function.id, "", node


def from_pretrained(path: Path) -> list[ast.Call]:
    """Calls of transformers' and peft's; ThinkingModel's own reads by `load_champion`."""
    found = [(owner, node) for name, owner, node in calls(path) if name == "from_pretrained"]
    return [node for owner, node in found if owner != "ThinkingModel"]


def test_every_call_forbids_code_and_network() -> None:
    found = [node for path in LOADING for node in from_pretrained(path)]
    assert len(found) == 5
    for node in found:
        options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        assert options["trust_remote_code"] is False
        assert options["local_files_only"] is True


def test_nothing_is_loaded_elsewhere() -> None:
    assert len(SOURCES) > 200
    for path in SOURCES:
        if path not in LOADING:
            assert not from_pretrained(path), f"load by distforge.models.loading: {path}"
            asked = {name for name, _, _ in calls(path)} & FROM_ELSEWHERE
            assert not asked, f"{path} calls {asked}"


def test_no_pickle_is_opened_with_all_that_it_may_run() -> None:
    for path in SOURCES:
        for name, owner, node in calls(path):
            if (name, owner) == ("load", "torch"):
                options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert options.get("weights_only") is True, f"{path}:{node.lineno}"
