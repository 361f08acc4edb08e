"""What the fault tests share: a process that forks runs, and the words of a small run."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Forks
from surroundings import Run, write_pairs


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Return the process that forks command lines."""
    process = Forks(tmp_path_factory.mktemp("streams"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.jsonl (26 pairs), other.jsonl (14) and validation.jsonl (6)."""
    folder = tmp_path_factory.mktemp("pairs")
    words = ["red", "blue", "green", "house", "tree", "cat", "dog", "sun", "moon", "sea"]

    def row(number: int, kind: str) -> dict[str, str]:
        first, second = words[number % 10], words[(3 * number + 1) % 10]
        chosen = " ".join([second] * (1 + number % 5) + [first])
        return {
            "prompt": f"{kind} {number} {first}",
            "chosen": chosen,
            "rejected": f"{first} no {number % 7}",
        }

    for name, count in (("train", 26), ("other", 14), ("validation", 6)):
        lines = [json.dumps(row(number, name)) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def fit(tiny_base: str, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Return a function that makes the words of a run of nine steps of four pairs, two micro-batches each.

    26 pairs are six such steps and one of two pairs; every second step is followed by a validation.
    """
    cache = tmp_path_factory.mktemp("cache")

    def words(run_dir: str, *more: Any, verb: str = "fit") -> list[Any]:
        settings = {
            "model.base_model": tiny_base,
            "model.lora_r": 4,
            "model.lora_dropout": 0.1,
            "model.optimizer.lr": 0.01,
            "model.gradient_checkpointing": "false",
            "data.train": pairs / "train.jsonl",
            "data.validation": pairs / "validation.jsonl",
            "data.cache_dir": cache,
            "data.duplicates": "keep",
            "data.batch_size": 2,
            "data.validation_batch_size": 2,
            "trainer.accelerator": "cpu",
            "trainer.max_steps": 9,
            "trainer.accumulate_grad_batches": 2,
            "trainer.val_check_interval": 4,
            "trainer.check_val_every_n_epoch": "null",
            "trainer.log_every_n_steps": 2,
            "trainer.num_sanity_val_steps": 0,
            "save_every": 1,
            "run_dir": run_dir,
        }
        # Short answers: as many as in any run, in less time.
        samples = (
            "--trainer.callbacks+=orpo_lightning.callbacks.Samples",
            "--trainer.callbacks.max_new_tokens=4",
        )
        return [verb, *(f"--{key}={value}" for key, value in settings.items()), *samples, *more]

    return words


@pytest.fixture(scope="session")
def whole(fit: Callable[..., list[Any]], forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    ended = forks.run(fit("whole"), folder)
    assert ended.code == 0, ended.err
    return folder / "whole"


# Faults from outside: one command line after the other, in this process, in a folder of its own.

_GUARD = 100


@pytest.fixture
def run(
    tmp_path: Path, tiny_base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Return a function that runs command lines in a folder of their own; what hangs ends with an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orpo-lightning"])
    monkeypatch.delenv("ORPO_DEBUG", raising=False)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    guard = signal.signal(signal.SIGALRM, _hanging)
    signal.alarm(_GUARD)
    yield Run(tmp_path, tiny_base, write_pairs(tmp_path / "pairs.jsonl"), capsys)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, guard)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _hanging(*_: object) -> None:
    raise TimeoutError(f"a command line took more than {_GUARD} s")


@pytest.fixture(autouse=True)
def _own_import_rules() -> Iterator[None]:
    """Undo what --safe-config sets for the rest of a process."""
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    yield
    _common.parsing_settings.clear()
    _common.parsing_settings.update(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is a file system of its own of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    os.chdir("/")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def mortal() -> Iterator[None]:
    """Take root's right to read and write everything from this thread, as it is for any other user."""
    if os.geteuid() != 0:
        yield
        return
    before = _capabilities()
    overrides = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    _capabilities(before & ~overrides)
    yield
    _capabilities(before)


def _capabilities(wanted: int | None = None) -> int:
    """Return which of the first 32 capabilities are effective, after setting them where they are given."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and again for those above 32
    assert libc.capget(header, data) == 0
    if wanted is not None:
        data[0] = wanted
        assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
    return data[0]
