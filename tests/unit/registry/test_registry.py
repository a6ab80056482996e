"""The embedded registry, read back through a fresh ModelRegistry over the same file."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.registry import MANIFEST_NAME, ModelRegistry, write_manifest
from distforge.registry import store as store_module


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store: making one costs seconds, so tests copy this one."""
    path = tmp_path_factory.mktemp("store") / "registry.db"
    ModelRegistry(path)
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "registry.db"))


def make_model(path: Path, weights: bytes) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def register_champion(registry: ModelRegistry, tmp_path: Path) -> str:
    path = make_model(tmp_path / "champion", b"champion")
    return registry.register_model(2, 0, "champion", path, {"source": "made"})


def register_baked(registry: ModelRegistry, path: Path, parent: str, accuracy: float) -> str:
    metadata = {
        "parent": parent,
        "config_sha256": "c" * 64,
        "base_model": "champions/quick",
        "seeds": [1, 2],
        "metrics": {"accuracy_overall": accuracy, "unmeasured": float("nan")},
    }
    return registry.register_model(3, 1, "baked_reasoning", path, metadata)


def test_what_was_registered_is_read_back_from_the_file(store: Path, tmp_path: Path) -> None:
    writer = ModelRegistry(store)
    champion = register_champion(writer, tmp_path)
    model = make_model(tmp_path / "baked", b"baked")
    version = register_baked(writer, model, champion, 0.875)
    assert (champion, version) == ("champion/1", "baked_reasoning/1")

    found = ModelRegistry(f"sqlite:///{store}").get(version)
    assert found.model_path == model
    assert found.parent == champion
    assert found.metrics == {"accuracy_overall": 0.875}
    expected = {
        "phase": "3",
        "step": "1",
        "parent": champion,
        "config_sha256": "c" * 64,
        "base_model": "champions/quick",
        "seeds": "[1, 2]",
        "manifest": found.manifest,
        "model_path": str(model),
    }
    assert {key: value for key, value in found.tags.items() if key != "git_commit"} == expected
    # The directory was read, and nothing was written into it.
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]
    assert found.manifest == write_manifest(model)


def test_finds_by_tags(store: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(store)
    champion = register_champion(registry, tmp_path)
    first = register_baked(registry, make_model(tmp_path / "a", b"a"), champion, 0.8)
    second = register_baked(registry, make_model(tmp_path / "b", b"b"), champion, 0.9)
    assert [v.version for v in registry.find()] == [first, second, champion]
    assert [v.version for v in registry.find("baked_reasoning", phase=3)] == [first, second]
    assert [v.version for v in registry.find(phase=2)] == [champion]
    assert registry.find(phase="3' OR 1=1 --") == []


def test_lineage_goes_both_ways(store: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(store)
    champion = register_champion(registry, tmp_path)
    baked = register_baked(registry, make_model(tmp_path / "a", b"a"), champion, 0.8)
    other = register_baked(registry, make_model(tmp_path / "b", b"b"), champion, 0.9)
    thinking = registry.register_model(
        3, 2, "rl_reasoning", make_model(tmp_path / "c", b"c"), {"parent": baked}
    )
    middle = registry.lineage(baked)
    assert [v.version for v in middle.ancestors] == [champion]
    assert [v.version for v in middle.descendants] == [thinking]
    root = registry.lineage(champion)
    assert root.ancestors == ()
    assert [v.version for v in root.descendants] == [baked, other, thinking]
    assert [v.version for v in registry.ancestors(thinking)] == [thinking, baked, champion]
    assert [v.version for v in registry.children(champion)] == [baked, other]


def test_the_same_content_is_registered_once_and_found_where_it_is_now(
    store: Path, tmp_path: Path
) -> None:
    registry = ModelRegistry(store)
    champion = register_champion(registry, tmp_path)
    model = make_model(tmp_path / "a", b"a")
    version = register_baked(registry, model, champion, 0.8)
    assert register_baked(registry, model, champion, 0.8) == version
    moved = model.rename(tmp_path / "moved")
    assert register_baked(ModelRegistry(store), moved, champion, 0.8) == version
    assert registry.get(version).model_path == moved
    assert len(registry.find("baked_reasoning")) == 1
    changed = make_model(tmp_path / "b", b"b")
    assert register_baked(registry, changed, champion, 0.8) == "baked_reasoning/2"


def test_verify_refuses_one_flipped_byte_even_with_a_new_manifest(
    store: Path, tmp_path: Path
) -> None:
    registry = ModelRegistry(store)
    version = register_champion(registry, tmp_path)
    model = tmp_path / "champion"
    assert registry.verify(version) == registry.get(version).manifest
    (model / "model.safetensors").write_bytes(b"chbmpion")
    with pytest.raises(InputError, match=r"model\.safetensors is not what was registered"):
        registry.verify(version)
    write_manifest(model)
    with pytest.raises(InputError, match="holds other content"):
        registry.verify(version)


def test_a_damaged_model_is_not_registered(store: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "a", b"a")
    write_manifest(model)
    (model / "model.safetensors").write_bytes(b"b")
    registry = ModelRegistry(store)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        registry.register_model(3, 1, "baked_reasoning", model, {})
    assert registry.find() == []


def test_an_alias_moves_and_is_read_back(store: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(store)
    assert registry.by_alias("baked_reasoning", "baked-best") is None
    first = register_baked(registry, make_model(tmp_path / "a", b"a"), "", 0.8)
    second = register_baked(registry, make_model(tmp_path / "b", b"b"), "", 0.9)
    assert registry.by_alias("baked_reasoning", "baked-best") is None
    for version in (first, second):
        registry.promote(version, "baked-best")
        found = ModelRegistry(store).by_alias("baked_reasoning", "baked-best")
        assert found is not None
        assert found.version == version
    with pytest.raises(InputError, match="alias is 'production'"):
        registry.promote(first, "production")
    with pytest.raises(InputError, match="no version 'baked_reasoning/9'"):
        registry.promote("baked_reasoning/9", "baked-best")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a'b", "a b", "-a", ".a", "é", "a" * 101])
def test_hostile_names_are_refused(store: Path, tmp_path: Path, name: str) -> None:
    registry = ModelRegistry(store)
    model = make_model(tmp_path / "a", b"a")
    with pytest.raises(InputError, match="model_type is"):
        registry.register_model(3, 1, name, model, {})
    with pytest.raises(InputError, match="model_type is"):
        registry.find(name)
    with pytest.raises(InputError, match="not of the form name/number"):
        registry.get(f"{name}/1/")
    with pytest.raises(InputError, match="a metadata key is"):
        registry.register_model(3, 1, "baked_reasoning", model, {name: "x"})
    assert not (model / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    "metadata, complaint",
    [
        ({"parent": "champion/7"}, "no version 'champion/7'"),
        ({"parent": "champion"}, "not of the form"),
        ({"manifest": "0" * 64}, "which the registry sets"),
        ({"model_path": "/"}, "which the registry sets"),
        ({"notes": "x" * 5001}, "5001 characters"),
        ({"metrics": {"accuracy": "high"}}, "expected a number"),
        ({"metrics": {"a b": 1.0}}, "a metric is called"),
    ],
)
def test_metadata_that_cannot_be_kept_are_refused(
    store: Path, tmp_path: Path, metadata: dict[str, object], complaint: str
) -> None:
    registry = ModelRegistry(store)
    with pytest.raises(InputError, match=complaint):
        registry.register_model(3, 1, "baked_reasoning", make_model(tmp_path / "a", b"a"), metadata)
    assert registry.find() == []


def test_a_directory_without_a_model_is_refused(store: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(store)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="is not an exported model"):
            registry.register_model(3, 1, "baked_reasoning", path, {})


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    for path in (tmp_path / "notes.txt", tmp_path, ""):
        with pytest.raises(InputError, match="the registry"):
            ModelRegistry(path)


def test_one_that_was_killed_while_it_was_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, genuine = tmp_path / "registry.db", store_module._migrate

    def die(partial: Path) -> None:
        with sqlite3.connect(partial) as half:
            half.execute("CREATE TABLE _alembic_tmp_experiments (id INTEGER)")
        partial.with_name(f"{partial.name}-journal").write_bytes(b"half a page")
        os._exit(9)

    if (child := os.fork()) == 0:
        store_module._migrate = die
        ModelRegistry(file)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not file.exists()
    made = []
    monkeypatch.setattr(store_module, "_migrate", lambda it: made.append(it) or genuine(it))
    registry = ModelRegistry(file)
    registry.register_model(3, 1, "baked", make_model(tmp_path / "model", b"w"))
    assert [v.version for v in ModelRegistry(file).find()] == ["baked/1"]
    assert len(made) == 1
    assert not list(tmp_path.glob("registry.db.tmp*"))


def test_needs_no_network(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(self: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    registry = ModelRegistry(store)
    registry.verify(register_champion(registry, tmp_path))
    assert asked == []


def test_importing_is_light_and_opening_is_quiet(store: Path) -> None:
    script = (
        "import sys; from distforge.registry import ModelRegistry\n"
        "assert 'mlflow' not in sys.modules\n"
        f"ModelRegistry({str(store.with_name('new.db'))!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout + done.stderr == ""
    assert store.with_name("new.db").exists()
