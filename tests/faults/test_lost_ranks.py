"""A process of a run that is killed or stopped ends the run within a minute, with a line that says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from runs import ROOT, load

Fit = Callable[..., list[Any]]
LAUNCHER = [sys.executable, "-m", "orpo_lightning"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LIMIT = 60


class Outcome(NamedTuple):
    """How a run ended after one of its processes was struck."""

    code: int
    seconds: float
    printed: str
    left: list[int]
    """Processes of the run that are still there."""


class Blow(NamedTuple):
    """What is done to which rank of a run that was started how."""

    start: list[str]
    rank: int
    signum: int
    more: tuple[str, ...] = ()


BLOWS = {
    "launcher, rank 1 killed": Blow(LAUNCHER, 1, signal.SIGKILL),
    "launcher, rank 0 stopped": Blow(LAUNCHER, 0, signal.SIGSTOP),
    "torchrun, rank 1 killed and started again": Blow(
        [*TORCHRUN, "--max-restarts=1", "-m", "orpo_lightning"], 1, signal.SIGKILL, ("--resume=auto",)
    ),
}
# Each waits for a minute: too long for every run of the tests.
FURTHER_BLOWS = {
    "launcher, rank 1 stopped": Blow(LAUNCHER, 1, signal.SIGSTOP),
    "torchrun, rank 1 stopped": Blow([*TORCHRUN, "-m", "orpo_lightning"], 1, signal.SIGSTOP),
}
LONG = ["--trainer.devices=2", "--trainer.val_check_interval=1000000", "--trainer.max_steps=100000"]
SHORT = ["--trainer.devices=2", "--trainer.max_steps=60"]


def state_and_parent(pid: int) -> tuple[str, int]:
    """Return a process's state ("Z": ended) and its parent; ("X", 0) where there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


def processes_of(pid: int) -> list[int]:
    """Return a process and all that come from it."""
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    parents = {one: state_and_parent(one)[1] for one in every}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def rank_of(pid: int) -> int | None:
    """Return the rank that a process was started as; None where it starts the others."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(pair[11:]) for pair in pairs if pair.startswith(b"LOCAL_RANK=")), None)


def alive(pids: list[int]) -> list[int]:
    """Return those that have not ended."""
    return [pid for pid in pids if state_and_parent(pid)[0] not in "ZX"]


def strike(blow: Blow, words: list[Any], folder: Path) -> Outcome:
    """Begin a run of two processes, strike one of them after two steps, and see how it ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "printed").open("w") as file:
        command = [*blow.start, *map(str, words), *blow.more]
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    printed, family = folder / "printed", [run.pid]
    end = time.monotonic() + 200
    try:
        while "step 2/" not in printed.read_text():
            assert run.poll() is None, printed.read_text()[-3000:]
            assert time.monotonic() < end, printed.read_text()[-3000:]
            time.sleep(0.1)
        family = processes_of(run.pid)
        ranks = {rank_of(pid): pid for pid in family}
        os.kill(ranks.get(blow.rank, run.pid), blow.signum)
        began = time.monotonic()
        code = run.wait(timeout=200)
        seconds = time.monotonic() - began
        while alive(family) and time.monotonic() < began + LIMIT:
            time.sleep(0.2)
        return Outcome(code, seconds, printed.read_text(), alive(family))
    finally:
        for left in alive(family):
            os.kill(left, signal.SIGKILL)


@pytest.fixture(scope="module")
def outcomes(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Return how each run ended; most of the time they only wait, so they do that together."""

    def one(name: str) -> Outcome:
        folder = tmp_path_factory.mktemp("struck")
        outcome = strike(BLOWS[name], fit("run", *(SHORT if "again" in name else LONG)), folder)
        if "again" in name:
            assert load(folder / "run")["global_step"] == 60, outcome.printed[-3000:]
        return outcome

    with ThreadPoolExecutor(len(BLOWS)) as threads:
        return dict(zip(BLOWS, threads.map(one, BLOWS), strict=True))


@pytest.mark.parametrize("name", [name for name in BLOWS if "again" not in name])
def test_a_lost_rank_ends_the_run_in_time_and_is_named(outcomes: dict[str, Outcome], name: str) -> None:
    assert_named(BLOWS[name], outcomes[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", FURTHER_BLOWS)
def test_a_rank_that_is_stopped_ends_the_run_in_time_and_is_named(
    name: str, fit: Fit, tmp_path: Path
) -> None:
    assert_named(FURTHER_BLOWS[name], strike(FURTHER_BLOWS[name], fit("run", *LONG), tmp_path))


def assert_named(blow: Blow, outcome: Outcome) -> None:
    """See that a run of which a rank was lost failed in time, with one line that says which."""
    assert outcome.code != 0
    assert outcome.seconds < LIMIT
    lines = [line for line in outcome.printed.splitlines() if f"rank {blow.rank} (process " in line]
    by_lightning = [line for line in outcome.printed.splitlines() if "[rank: 1] Child process" in line]
    assert lines or by_lightning, outcome.printed[-3000:]
    assert len(lines) <= 1
    assert outcome.left == []
    if blow.signum == signal.SIGSTOP:
        assert "has not " in lines[0]
        assert "--resume auto goes on" in lines[0]


def test_torchrun_starts_a_run_again_that_goes_on_from_its_checkpoint(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["torchrun, rank 1 killed and started again"]
    assert outcome.code == 0, outcome.printed[-3000:]
    assert "rank 1 (process " in outcome.printed or "rank      : 1" in outcome.printed
    assert "checkpoints/last.ckpt" in outcome.printed
    assert outcome.left == []
