"""torch.ops.distforge has its operators once the extension is loaded, which a test that runs first
has not done yet."""

import pytest

from distforge import ops


@pytest.fixture(autouse=True, scope="session")
def loaded_extension() -> None:
    ops.backend()
