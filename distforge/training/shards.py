"""The pickled files of a checkpoint: who wrote which, and what loading them may do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Forces weights_only on every torch.load, DeepSpeed's own among them.
_TORCH_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class ShardWriter:
    """Writes this rank's files below ``root``, the checkpoint's directory.

    Attributes:
        paths: POSIX paths, relative to ``root``, of the files written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[str] = []

    def save(self, state_dict: Any, path: str | Path) -> None:
        """As ``torch.save(state_dict, path)``, by the names that DeepSpeed uses."""
        with _without_crc32():
            torch.save(state_dict, path)
        self.paths.append(Path(path).relative_to(self.root).as_posix())


@contextmanager
def loading_plain_data() -> Iterator[None]:
    """Inside, torch unpickles tensors, plain data and DeepSpeed's few types, and runs nothing.

    That holds for the loading that DeepSpeed does as well, which asks for all of pickle.
    """
    before = os.environ.get(_TORCH_SWITCH)
    os.environ[_TORCH_SWITCH] = "1"
    try:
        with torch.serialization.safe_globals(_deepspeed_types()):
            yield
    finally:
        if before is None:
            del os.environ[_TORCH_SWITCH]
        else:
            os.environ[_TORCH_SWITCH] = before


def _deepspeed_types() -> list[Any]:
    """What the states of its optimizers hold beside tensors: places, stages, loss scales."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [fragment_address, ZeroStageEnum, LossScaler, DynamicLossScaler]


@contextmanager
def _without_crc32() -> Iterator[None]:
    """The manifest's sha256 says all that torch's own checksums would."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
