"""Writers of one content, interleaved: one version stays, whole, and all of them get its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distforge.registry import ModelRegistry
from distforge.registry.store import Store
from distforge.registry.versions import Versions

NAME = "baked_reasoning"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def register(store: Path, model: Path) -> str:
    metadata = {"metrics": {"accuracy_overall": 0.5}}
    return ModelRegistry(store).register_model(3, 1, NAME, model, metadata)


def runs(store: Path) -> Iterator[Any]:
    import mlflow
    from mlflow.entities import ViewType

    client = mlflow.MlflowClient(f"sqlite:///{store}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    yield from client.search_runs(experiments, run_view_type=ViewType.ALL)


# The slow writer's calls about its run, its version, and its end.
@pytest.mark.parametrize("call", ["log_metric", "create_model_version", "set_terminated"])
@pytest.mark.parametrize("shares", [True, False])
def test_a_writer_that_others_overtake_has_their_version(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, call: str, shares: bool
) -> None:
    """Before its ``call`` a faster one registers the same, and so does a third, which has taken up
    the slow one's run (``shares``) or has its own; whoever comes later removes its run."""
    store = tmp_path / "registry.db"
    ModelRegistry(store)
    genuine_run, genuine_call = Versions._run_for, Store._call
    taken: list[Any] = []
    others: list[str] = []

    def run_for(self: Versions, name: str, manifest: str) -> Any:
        if not (shares and len(taken) == 2):
            with monkeypatch.context() as patch:
                patch.setattr("distforge.registry.sessions.find_runs", lambda *_: [])
                taken.append(genuine_run(self, name, manifest))
            return taken[-1]
        return taken[0]

    def then_others(self: Store, method: Callable[..., Any], *words: Any, **options: Any) -> Any:
        if getattr(method, "__name__", "") == call:
            monkeypatch.setattr(Store, "_call", genuine_call)
            # Neither sees what the slow one or the other has made: they all began at once.
            with monkeypatch.context() as patch:
                patch.setattr(Versions, "numbers_of", blind_at_first(Versions.numbers_of))
                others.extend(register(store, model) for _ in range(2))
        return genuine_call(self, method, *words, **options)

    monkeypatch.setattr(Versions, "_run_for", run_for)
    monkeypatch.setattr(Store, "_call", then_others)
    assert [register(store, model), *others] == [f"{NAME}/1"] * 3
    [version] = ModelRegistry(store).find(NAME)
    assert version.metrics == {"accuracy_overall": 0.5}
    [kept] = [run for run in runs(store) if run.info.lifecycle_stage == "active"]
    assert kept.info.status == "FINISHED"


def blind_at_first(numbers_of: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """`Versions.numbers_of`, which finds nothing at the first of each writer's two calls."""
    count = iter(range(100))

    def found(self: Versions, name: str, manifest: str) -> list[str]:
        return numbers_of(self, name, manifest) if next(count) % 2 else []

    return found
