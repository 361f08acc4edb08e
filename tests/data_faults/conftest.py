"""One way for all: from a file to the pairs that are trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import Prepare, making


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Return a function that prepares the data module of a training source and any other arguments."""
    return making(tmp_path)
