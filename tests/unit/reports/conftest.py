"""Pictures as users get them: elsewhere tests draw few pixels (`tests/conftest.py`)."""

from collections.abc import Iterator

import pytest

from distforge.reports import canvas

# Before any fixture changes it.
USERS_DPI = canvas._DPI


@pytest.fixture(scope="module", autouse=True)
def whole_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "_DPI", USERS_DPI)
        yield
