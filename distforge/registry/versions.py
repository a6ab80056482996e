"""Registered versions in MLflow's store: made, found, and read as `ModelVersion`.

A version's run holds its metrics and, on a server, its files. A run whose version was never made
(the sender was killed, the upload cut off) is taken up again by whoever registers the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distforge.errors import InputError
from distforge.registry import artifacts, sessions
from distforge.registry.contents import Entries
from distforge.registry.places import found_path
from distforge.registry.records import MANIFEST, PARENT, PATH, ModelVersion, split_version
from distforge.registry.store import Store, experiment_id, is_server

_NAME = "model_type"


class Versions:
    """The versions of one store.

    Args:
        store: MLflow's.
        folder: what kept paths are relative to, or None.
        progress: called after every piece of an upload.
    """

    def __init__(self, store: Store, folder: Path | None, progress: Callable[[], None]) -> None:
        self._store, self._folder, self._progress = store, folder, progress

    def create(
        self,
        model_type: str,
        tags: dict[str, str],
        metrics: dict[str, float],
        path: Path,
        entries: Entries,
    ) -> str:
        """Make a version of the files in ``path``; its name and number."""
        if lookup(self._store.get_registered_model, model_type) is None:
            self._make_name(model_type)
        run = self._run_for(model_type, tags[MANIFEST])
        try:
            for name, value in metrics.items():
                self._store.log_metric(run.info.run_id, name, value)
            source = tags[PATH]
            if is_server(self._store.uri):
                source = artifacts.upload(self._store, run, path, entries, self._progress)
            # Copy first, then the version with its tags: what is seen at all is seen whole.
            created = self._store.create_model_version(
                model_type, source=source, run_id=run.info.run_id, tags=tags
            )
        except InputError:
            if self._store.get_run(run.info.run_id).info.lifecycle_stage != "deleted":
                raise
            # Two writers of this content had taken up one run, a third was faster, and the other
            # of the two has removed the run already.
            return f"{model_type}/{self.numbers_of(model_type, tags[MANIFEST])[0]}"
        # Of several writers of one content the lowest number stays, for all.
        number, first = str(created.version), self.numbers_of(model_type, tags[MANIFEST])[0]
        if first == number:
            self._store.set_terminated(run.info.run_id)
        else:
            self._store.delete_model_version(model_type, number)
            kept = self._store.get_model_version(model_type, first)
            if kept.run_id != run.info.run_id:
                artifacts.delete_copy(self._store, run)
        return f"{model_type}/{first}"

    def numbers_of(self, model_type: str, manifest: str) -> list[str]:
        """The versions of one name with this content."""
        found = self.search(f"name = '{model_type}' and tags.{MANIFEST} = '{manifest}'")
        return [str(v.version) for v in found]

    def finish(self, version: str) -> None:
        """Close the run of a version whose sender was killed before it could."""
        run = self.run_of(version)
        if run.info.status == "RUNNING":
            self._store.set_terminated(run.info.run_id)

    def run_of(self, version: str) -> Any:
        """The MLflow run of a version."""
        return self._store.get_run(self._store.get_model_version(*split_version(version)).run_id)

    def search(self, condition: str | None) -> list[Any]:
        """Ready versions that this package registered, by name and number, as MLflow has them."""
        found: list[Any] = []
        token = None
        while True:
            page = self._store.search_model_versions(condition, page_token=token)
            # A shared server also holds what others registered, in their own ways.
            found += [v for v in page if v.status == "READY" and MANIFEST in v.tags]
            token = page.token
            if not token:
                return sorted(found, key=lambda v: (v.name, int(v.version)))

    def read(self, versions: Iterable[Any]) -> list[ModelVersion]:
        """With metrics and aliases."""
        versions = list(versions)
        metrics = sessions.read_metrics(self._store, [v.run_id for v in versions])
        aliases = self._aliases({v.name for v in versions})
        found = []
        for v in versions:
            path = found_path(v.tags[PATH], self._folder)
            found.append(
                ModelVersion(
                    version=f"{v.name}/{v.version}",
                    model_path=path,
                    manifest=v.tags[MANIFEST],
                    parent=v.tags.get(PARENT, ""),
                    tags={**v.tags, PATH: str(path)},
                    metrics=metrics.get(v.run_id, {}),
                    aliases=aliases.get((v.name, str(v.version)), ()),
                    uploaded=v.source.startswith(artifacts.SCHEME),
                )
            )
        return found

    def _run_for(self, model_type: str, manifest: str) -> Any:
        left = sessions.find_runs(
            self._store,
            f"tags.{MANIFEST} = '{manifest}' and tags.{_NAME} = '{model_type}' "
            "and attributes.status = 'RUNNING'",
        )
        if left:
            return left[-1]
        tags = {MANIFEST: manifest, _NAME: model_type}
        return self._store.create_run(experiment_id(self._store), run_name=model_type, tags=tags)

    def _make_name(self, model_type: str) -> None:
        try:
            self._store.create_registered_model(model_type)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self, names: set[str]) -> dict[tuple[str, str], tuple[str, ...]]:
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for name in names:
            for alias, number in sorted(self._store.get_registered_model(name).aliases.items()):
                found[name, str(number)] = (*found.get((name, str(number)), ()), alias)
        return found


def lookup(method: Any, *arguments: str) -> Any:
    """What MLflow has under a name, or None."""
    try:
        return method(*arguments)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
