"""Shared by all tests: nothing reaches a hub, one thread, quiet libraries."""

from __future__ import annotations

import os

# One thread: on operations this small, waiting for a second one costs more than it computes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_seed_left_behind() -> Any:
    """Undo `seed_everything`: it writes the environment, and the module seeds dropout from there."""
    before = os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    if before is not None:
        os.environ["PL_GLOBAL_SEED"] = before


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny random Llama with a ChatML tokenizer."""
    from tiny_models import tiny_model, tiny_tokenizer

    folder: Path = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer("chatml")
    tiny_model("llama", tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
