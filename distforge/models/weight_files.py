"""The weight files of a model's directory: which they are, and their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distforge.activity import named
from distforge.errors import InputError
from distforge.models.champion_file import check_config, read_json

_INSIDE = "model"


def model_directory(source: str | Path) -> Path:
    """``source`` as a path; of a run's directory, the model in it."""
    path = Path(source).expanduser()
    inside = path / _INSIDE
    is_run = not (path / "config.json").is_file() and (inside / "config.json").is_file()
    return inside if is_run else path


def no_model(directory: Path) -> InputError:
    """What is said of a directory that is neither a model's nor that of a run with a model."""
    if (directory / "config.toml").is_file():
        return InputError(
            f"the run {directory} has no model yet; let it reach its end, or give another model"
        )
    return InputError(
        f"{directory} has no config.json; expected a directory that save_pretrained wrote, or a "
        "run's"
    )


def weights_sha256(source: str | Path) -> str:
    """What `load_champion` would give as ``sha256``, without loading; empty where no path is.

    Raises:
        InputError: a directory without a model.
    """
    path = model_directory(source)
    if path.is_dir():
        return files_sha256(weight_files(path))
    return files_sha256([path]) if path.is_file() else ""


def weight_files(directory: Path) -> list[Path]:
    """The safetensors of a model's directory, by name.

    Raises:
        InputError: no model, an adapter, no safetensors, or an index that names others.
    """
    config = directory / "config.json"
    if not config.is_file():
        raise no_model(directory)
    check_config(read_json(config), config)
    if (directory / "adapter_config.json").exists():
        raise InputError(
            f"{directory} holds an adapter; merge it with merge_and_unload and save the model"
        )
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{directory} has no .safetensors weights; save the model again with save_pretrained"
        )
    _check_shards(directory, {file.name for file in files})
    return files


def of_the_model(files: list[Path]) -> list[Path]:
    """Without what else lies there, such as a mixing head."""
    return [file for file in files if file.name.startswith("model")] or files


def _check_shards(directory: Path, names: set[str]) -> None:
    """transformers follows an index wherever it points, out of the directory too."""
    for index in directory.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map")
        named = set(map(str, shards.values())) if isinstance(shards, dict) else {str(shards)}
        if not named <= names:
            raise InputError(
                f"{index} names {some(sorted(named - names))}, which is no weight file in "
                f"{directory}; save the model again with save_pretrained"
            )


@named("computing the sha256 of the weights")
def files_sha256(files: list[Path]) -> str:
    """Hex sha256 of one file, or of the list of several with their hashes and names."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    lines = (f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def some(items: list[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
