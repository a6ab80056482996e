"""The tests in here are marked ``gpu``; they need an NVIDIA GPU, torch and distforge alone."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="torch sees no CUDA device")
    for item in items:
        if HERE in item.path.parents and not torch.cuda.is_available():
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def shared() -> None:
    """Nothing of what other tests share: these need torch and distforge alone."""
