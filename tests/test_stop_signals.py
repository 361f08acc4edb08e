"""Signals are noted while a run trains, obeyed at once otherwise, and given back afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orpo_lightning.stop_signals import SIGNALS, Stopped, StopSignals

ROOT = Path(__file__).parent.parent


def strike_and_wait(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(1)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_raises_at_once_where_nothing_is_deferred(signum: signal.Signals) -> None:
    with StopSignals(), pytest.raises(Stopped) as caught:
        strike_and_wait(signum)
    assert caught.value.code == 128 + signum
    assert caught.value.line == f"stopped by {signum.name}"


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_deferred_signal_is_noted_and_told(
    signum: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopSignals() as signals:
        signals.deferred = True
        os.kill(os.getpid(), signum)
        time.sleep(0.01)
        assert signals.received == signum
    assert capfd.readouterr().err.startswith(f"{signum.name}: stopping after this optimizer step")


def test_the_handlers_from_before_are_back_afterwards() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with StopSignals(), StopSignals() as inner:
        signal.signal(signal.SIGTERM, lambda *_: None)
        inner.take_over()
        assert signal.getsignal(signal.SIGTERM) == inner._handle
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_outside_the_main_thread_nothing_is_handled() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_libraries_are_loaded_ends_the_command_line_in_one_line(
    signum: signal.Signals,
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "orpo_lightning", "fit", "-c", "configs/mistral.yaml"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)  # torch takes longer
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert err == f"error: stopped by {signum.name}\n"
