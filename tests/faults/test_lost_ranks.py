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
    "launcher, rank 1 stopped": Blow(LAUNCHER, 1, signal.SIGSTOP),
    "torchrun, rank 1 stopped": Blow([*TORCHRUN, "-m", "orpo_lightning"], 1, signal.SIGSTOP),
    "torchrun, rank 1 killed and started again": Blow(
        [*TORCHRUN, "--max-restarts=1", "-m", "orpo_lightning"], 1, signal.SIGKILL, ("--resume=auto",)
    ),
}


def ranks_of(pid: int) -> dict[int, int]:
    """Return rank → process of a run by its first process, which may be rank 0 or torchrun."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/environ"):
        try:
            one = int(stat.parent.name)
            if os.getpgid(one) != pid or b"pt_data_worker" in (stat.parent / "cmdline").read_bytes():
                continue
            pairs = dict(part.split(b"=", 1) for part in stat.read_bytes().split(b"\0") if b"=" in part)
        except (OSError, ValueError):
            continue
        if b"LOCAL_RANK" in pairs:
            found[int(pairs[b"LOCAL_RANK"])] = one
    return found if 0 in found else {0: pid, **found}


def group_of(pid: int) -> list[int]:
    """Return the processes of a run that have not ended."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
            if os.getpgid(int(stat.parent.name)) == pid and state not in "ZX":
                alive.append(int(stat.parent.name))
        except OSError:
            continue
    return alive


def strike(name: str, words: list[Any], folder: Path) -> Outcome:
    """Begin a run of two processes, strike one of them after two steps, and see how it ends."""
    blow = BLOWS[name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "printed").open("w") as file:
        command = [*blow.start, *map(str, words), *blow.more]
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    printed = folder / "printed"
    end = time.monotonic() + 200
    try:
        while "step 2/" not in printed.read_text():
            assert run.poll() is None, printed.read_text()[-3000:]
            assert time.monotonic() < end, printed.read_text()[-3000:]
            time.sleep(0.1)
        os.kill(ranks_of(run.pid)[blow.rank], blow.signum)
        began = time.monotonic()
        code = run.wait(timeout=200)
        seconds = time.monotonic() - began
        time.sleep(6)
        return Outcome(code, seconds, printed.read_text(), group_of(run.pid))
    finally:
        for left in group_of(run.pid):
            os.kill(left, signal.SIGKILL)


@pytest.fixture(scope="module")
def outcomes(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Return how each run ended; most of the time they only wait, so they do that together."""
    settings = ["--trainer.devices=2", "--trainer.val_check_interval=1000000", "--trainer.max_steps=100000"]
    short = ["--trainer.devices=2", "--trainer.max_steps=60"]

    def one(name: str) -> Outcome:
        folder = tmp_path_factory.mktemp("struck")
        outcome = strike(name, fit("run", *(short if "again" in name else settings)), folder)
        if "again" in name:
            assert load(folder / "run")["global_step"] == 60, outcome.printed[-3000:]
        return outcome

    with ThreadPoolExecutor(len(BLOWS)) as threads:
        return dict(zip(BLOWS, threads.map(one, BLOWS), strict=True))


@pytest.mark.parametrize("name", [name for name in BLOWS if "again" not in name])
def test_a_lost_rank_ends_the_run_in_time_and_is_named(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert outcome.code != 0
    assert outcome.seconds < LIMIT
    lines = [line for line in outcome.printed.splitlines() if f"rank {BLOWS[name].rank} (process " in line]
    by_lightning = [line for line in outcome.printed.splitlines() if "[rank: 1] Child process" in line]
    assert lines or by_lightning, outcome.printed[-3000:]
    assert len(lines) <= 1
    assert outcome.left == []
    if BLOWS[name].signum == signal.SIGSTOP:
        assert "has not " in lines[0]
        assert "--resume auto goes on" in lines[0]


def test_torchrun_starts_a_run_again_that_goes_on_from_its_checkpoint(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["torchrun, rank 1 killed and started again"]
    assert outcome.code == 0, outcome.printed[-3000:]
    assert "rank 1 (process " in outcome.printed or "rank      : 1" in outcome.printed
    assert "checkpoints/last.ckpt" in outcome.printed
    assert outcome.left == []
