"""Command lines of small real training runs, started from a process that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STRIKE = "strike.Strike"


class Ended(NamedTuple):
    """What a command line left behind."""

    code: int
    out: str
    err: str


class Run:
    """One command line under way."""

    def __init__(self, forks: Forks, pid: int, streams: tuple[Path, Path]) -> None:
        """Keep what is needed to watch it."""
        self.forks, self.pid, self.streams = forks, pid, streams

    def send(self, signum: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until the text stands on stdout."""
        end = time.monotonic() + seconds
        while text not in self.streams[0].read_text(encoding="utf-8"):
            assert time.monotonic() < end, self._printed()
            time.sleep(0.005)

    def wait(self) -> Ended:
        """Wait for its end."""
        code = self.forks.order({"wait": self.pid})
        out, err = (stream.read_text(encoding="utf-8") for stream in self.streams)
        return Ended(code, out, err)

    def _printed(self) -> str:
        return "\n".join(stream.read_text(encoding="utf-8")[-3000:] for stream in self.streams)


class Forks:
    """The process that forks command lines."""

    def __init__(self, folder: Path) -> None:
        """Start it."""
        self._folder, self._count = folder, 0
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}:{HERE.parent}"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def order(self, order: dict[str, Any]) -> int:
        """Tell it something and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, words: list[Any], cwd: Path, **env: str) -> Run:
        """Begin a command line in a folder, with further environment variables."""
        self._count += 1
        streams = tuple(self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        for stream in streams:
            stream.touch()
        out, err = map(str, streams)
        told = {"words": [str(word) for word in words], "out": out, "err": err, "cwd": str(cwd), "env": env}
        return Run(self, self.order(told), (streams[0], streams[1]))

    def run(self, words: list[Any], cwd: Path, **env: str) -> Ended:
        """Run a command line to its end."""
        return self.start(words, cwd, **env).wait()

    def start_ranks(self, words: list[Any], cwd: Path, world: int) -> list[Run]:
        """Begin a command line in several processes that are one run, as torchrun would start them."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forks"}
        env |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_WORLD_SIZE": "1"}
        return [self.start(words, cwd, **env, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world)]

    def run_ranks(self, words: list[Any], cwd: Path, world: int) -> list[Ended]:
        """Run a command line in several processes to their end."""
        return [run.wait() for run in self.start_ranks(words, cwd, world)]

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def strike(where: str, step: int, do: str, times: int = 1, rank: int = -1) -> list[Any]:
    """Return the words that make something happen in a run: see tests/faults/strike.py."""
    named = {"where": where, "step": step, "do": do, "times": times, "rank": rank}
    return [
        f"--trainer.callbacks+={STRIKE}",
        *(f"--trainer.callbacks.{key}={value}" for key, value in named.items()),
    ]


def run_ranks(words: list[Any], cwd: Path, processes: int = 2) -> Ended:
    """Run a command line on several processes, which Lightning starts."""
    ranks = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "orpo_lightning", *map(str, words), *ranks]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def load(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """Return a checkpoint of a run's folder."""
    import orpo_lightning.galore  # noqa: F401  (its projections are allowed in checkpoints)

    return torch.load(folder / "checkpoints" / name, weights_only=True)


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return a run's curves in TensorBoard as it shows them, each step at most once; times left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        if is_of_the_machine(tag):
            continue
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        assert len(points) == len(dict(points)), f"{tag} has two values of one step: {points}"
        found[tag] = dict(points)
    return found


def is_of_the_machine(tag: str) -> bool:
    """Tell whether a value says how fast or large a run was, which no two runs share."""
    return any(word in tag for word in ("per_second", "mfu", "memory"))


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of curves.jsonl or samples.jsonl, what is of the machine left out."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [{name: value for name, value in row.items() if not is_of_the_machine(name)} for row in rows]


def assert_same_end(one: Path, other: Path) -> None:
    """Compare two runs bit for bit: weights, optimizer, schedule, place in the data, every logged value."""
    first, second = load(one), load(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "PreferenceDataModule", "global_step"):
        assert_equal(first[key], second[key], key)
    assert curves(one) == curves(other)
    for name in ("curves.jsonl", "samples.jsonl"):
        assert lines(one / name) == lines(other / name)


def assert_equal(one: Any, other: Any, where: str) -> None:
    """Compare nested values, tensors by their bits."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_equal(value, other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{number}]")
    elif hasattr(one, "ortho_matrix"):
        assert_equal(vars(one), vars(other), where)
    else:
        assert one == other, where


SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGUSR1": signal.SIGUSR1}
