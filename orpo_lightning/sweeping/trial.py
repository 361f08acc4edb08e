"""One trial of a sweep: a run of its own, in a process of its own, followed by what it logs."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.errors import UsageError
from orpo_lightning.run_lock import RunLock
from orpo_lightning.stop_signals import SIGNALS, Stopped
from orpo_lightning.sweeping.space import flags
from orpo_lightning.sweeping.study import Taken

log = logging.getLogger(__name__)
PROGRAM = (sys.executable, "-m", "orpo_lightning", "fit")
CONSOLE = "console"
VALUES = "trial.jsonl"
_WATCH = "orpo_lightning.callbacks.TrialWatch"
_LOOK_SECONDS = 0.1
_STOP_SECONDS = 120
_TAIL_BYTES = 20_000


class Ended(NamedTuple):
    """How a trial ended."""

    state: str
    """complete, pruned or failed."""
    value: float | None
    """The metric at its last validation."""
    step: int | None
    reason: str = ""
    """Why, of one that failed."""


def run_trial(taken: Taken, words: Sequence[str], metric: str) -> Ended:
    """Run a trial to its end, or until its values say that it falls behind.

    Args:
        taken: the trial.
        words: of `fit`, for all trials.
        metric: that is reported.

    Raises:
        Stopped: a signal ended the sweep, or this run of it: the end of a SLURM job is seen by the run alone.
            The run has stopped in good order, to go on later.
    """
    folder = taken.folder
    folder.mkdir(parents=True, exist_ok=True)
    _wait_for_orphan(folder)
    command = [*PROGRAM, *words, *flags(taken.settings)]
    command += [f"--run_dir={folder}", "--resume=auto", f"--trainer.callbacks+={_WATCH}"]
    own = {"file": str(folder / VALUES), "metric": metric, "parent": os.getpid()}
    command += flags({f"trainer.callbacks.{key}": value for key, value in own.items()})
    with (folder / CONSOLE).open("ab") as console:
        # A session of its own: Ctrl-C comes to this process, which hands it on.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
        )
        try:
            pruned = _follow(child, taken.trial, folder / VALUES)
        finally:
            _end(child)
    stopped_by = {code: signum for signum in SIGNALS for code in (128 + signum, -signum)}
    if not pruned and (signum := stopped_by.get(child.returncode)):
        name = signal.Signals(signum).name
        raise Stopped(signum, f"trial {taken.name} was stopped by {name}: the same command goes on with it")
    return _how(child.returncode, pruned, folder, metric)


def _follow(child: subprocess.Popen[bytes], trial: Any, file: Path) -> bool:
    """Report each value as it comes; return whether the trial is to end early, or False at its own end."""
    seen: set[int] = set()
    while True:
        is_over = child.poll() is not None
        for step, value in values(file):
            if step not in seen:
                seen.add(step)
                trial.report(value, step)
                if not is_over and trial.should_prune():
                    return True
        if is_over:
            return False
        time.sleep(_LOOK_SECONDS)


def values(file: Path) -> list[tuple[int, float]]:
    """Return the steps and values that a run has written so far."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]  # a line may be half written
    found = map(json.loads, whole.splitlines())
    return list({line["step"]: (line["step"], float(line["value"])) for line in found}.values())


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let a run that is not over stop as after SIGTERM: with its step, and a checkpoint."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _how(code: int, pruned: bool, folder: Path, metric: str) -> Ended:
    found = values(folder / VALUES)
    step, value = found[-1] if found else (None, None)
    if pruned:
        return Ended("pruned", value, step)
    if code:
        return Ended("failed", value, step, _reason(code, folder / CONSOLE))
    if value is None:
        return Ended("failed", None, None, f"no {metric} was logged in a validation")
    if math.isnan(value):
        return Ended("failed", None, step, f"{metric} is not a number")
    return Ended("complete", value, step)


def _reason(code: int, console: Path) -> str:
    """Return the error that a run ended with, as it told it."""
    if code < 0:
        killed = signal.Signals(-code).name
        return f"ended by {killed}" + (": out of memory?" if -code == signal.SIGKILL else "")
    errors = [line for line in _tail(console) if line.startswith("error: ")]
    return f"exit code {code}: {errors[-1].removeprefix('error: ') if errors else f'see {console}'}"


def _tail(file: Path) -> Iterator[str]:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        yield from content.read().decode("utf-8", "replace").splitlines()


def _wait_for_orphan(folder: Path) -> None:
    """Wait for the run of a sweep that was killed: it notices with its next step, saves and ends."""
    told = False
    while True:
        try:
            RunLock(folder).release()
        except UsageError as error:
            if not told:
                log.info("%s", str(error).partition(":")[0] + ": waiting for it")
            told = True
            time.sleep(_LOOK_SECONDS)
        else:
            return
