"""Faults from outside: one command line after the other, in this process, with a tiny model."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from surroundings import Run, write_pairs

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
