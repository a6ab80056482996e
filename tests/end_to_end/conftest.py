"""What a newcomer does with the pages of docs alone: their commands, in `documented_folder`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documented_folder import documented_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return documented_folder(tmp_path / "folder")
