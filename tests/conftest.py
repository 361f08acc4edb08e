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


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a ChatML tokenizer."""
    from tiny_models import tiny_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer("chatml").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where the libraries look for what they have of the hub; see `hub_cache.in_cache`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def chromium() -> Any:
    """Give one browser to all tests of a file."""
    from tests.browser import browser

    with browser() as session:
        yield session


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run scripts/quickstart here, kill it once, run it again; return its folder and what it printed."""
    import signal
    import subprocess
    import sys
    import time

    folder = tmp_path_factory.mktemp("quickstart")
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / "venv" / "installed").touch()
    run = folder / "runs" / "quickstart"
    settings = {"VENV": str(folder / "venv"), "RUN_DIR": str(run), "XDG_CACHE_HOME": str(folder / "cache")}
    environment = {**os.environ, **settings}
    words = ["bash", str(Path(__file__).parent.parent / "scripts" / "quickstart")]
    log = (folder / "killed.log").open("w")
    first = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not last.is_file():
        printed = (folder / "killed.log").read_text()
        assert first.poll() is None, f"ended before its first checkpoint:\n{printed}"
        assert time.monotonic() < deadline, printed
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    return run, second.stdout
